from trace_opt import Parameter, connect, optimize, trace
from trace_opt.guides import exact

llm = connect("embedded/smollm2")  # runs on one CPU thread: no key, no network
instruction = Parameter(
    "Classify.", name="instruction", suggestions=["Is this review good or bad?", "Judge the review."]
)
cue = Parameter("", name="cue", choices=["", "Verdict:", "The review is"])


@trace
def classify(text: str) -> str:  # parameters that an op reads are its inputs
    prompt = f"{instruction.value}\n{text}"
    return llm.reply(prompt, answers=("good", "bad"), prefill=cue.value).text


words = {"good": ["lovely", "superb", "a delight", "well made"], "bad": ["awful", "broken", "a waste", "too slow"]}
things = ["phone", "hotel", "novel", "soup", "film"]
train = [{"text": f"The {t} was {w}.", "answer": a} for a in words for w in words[a] for t in things]

run = optimize(classify, train, exact(), seed=0)
print(run.report())  # start and best on held-out examples, with intervals
print(run.best)
