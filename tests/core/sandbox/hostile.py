"""Hostile functions by class. Each takes what it may attack and returns "ESCAPED" where it got what it wanted.

`limit` names the limit that has to end it: one name for both sandboxes, or a name for each. A case without a limit ends in
some other error or gives back something harmless.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any, NamedTuple


class Case(NamedTuple):
    kind: str
    name: str
    source: str
    limits: dict[str, str | None]


CASES: list[Case] = []


def hostile(kind: str, name: str, body: str, limit: Any = None) -> None:
    lines = textwrap.dedent(body).strip("\n")
    source = lines if re.match(r"(async )?def f\(", lines) else "def f(x):\n" + textwrap.indent(lines, "    ")
    limits = limit if isinstance(limit, dict) else {"monty": limit, "process": limit}
    CASES.append(Case(kind, name, source + "\n", limits))


def only(**limits: str | None) -> dict[str, str | None]:
    return {"monty": None, "process": None, **limits}


# files
hostile("files", "read a file", "return 'ESCAPED' if 'secret' in open(x['secret']).read() else 1")
hostile("files", "read by pathlib", "import pathlib\nreturn 'ESCAPED' if pathlib.Path(x['secret']).read_text() else 1")
hostile("files", "read the passwords", "return 'ESCAPED' if open('/etc/passwd').read() else 1")
hostile("files", "write a file", "open(x['folder'] + '/made', 'w').write('a')\nreturn 'ESCAPED'")
hostile("files", "append to a file", "open(x['secret'], 'a').write('a')\nreturn 'ESCAPED'")
hostile("files", "delete a file", "import os\nos.unlink(x['secret'])\nreturn 'ESCAPED'")
hostile("files", "rename a file", "import os\nos.rename(x['secret'], x['secret'] + '2')\nreturn 'ESCAPED'")
hostile("files", "make a link", "import os\nos.symlink(x['secret'], x['folder'] + '/link')\nreturn 'ESCAPED'")
hostile("files", "make a folder", "import os\nos.mkdir(x['folder'] + '/sub')\nreturn 'ESCAPED'")
hostile("files", "change rights", "import os\nos.chmod(x['secret'], 0o777)\nreturn 'ESCAPED'")
hostile("files", "change owner", "import os\nos.chown(x['secret'], 1, 1)\nreturn 'ESCAPED'")
hostile("files", "change times", "import os\nos.utime(x['secret'], (1, 1))\nreturn 'ESCAPED'")
hostile("files", "truncate", "import os\nos.truncate(x['secret'], 0)\nreturn 'ESCAPED'")
hostile("files", "list a folder", "import os\nreturn 'ESCAPED' if os.listdir(x['folder']) else 1")
hostile("files", "list the root", "import os\nreturn 'ESCAPED' if os.listdir('/') else 1")
hostile("files", "own memory", "open('/proc/self/mem', 'rb').read(1)\nreturn 'ESCAPED'")
hostile("files", "memory of the host", "open(f\"/proc/{x['pid']}/mem\", 'r+b')\nreturn 'ESCAPED'")
hostile("files", "environment of the host", "return 'ESCAPED' if open(f\"/proc/{x['pid']}/environ\").read() else 1")
hostile("files", "shared memory", "open('/dev/shm/trace_opt_escape', 'w').write('a')\nreturn 'ESCAPED'")
hostile("files", "temporary file", "import tempfile\ntempfile.TemporaryFile().write(b'a')\nreturn 'ESCAPED'")
hostile("files", "open by number", """
    import os
    for fd in range(5, 300):
        try:
            os.read(fd, 1)
            return 'ESCAPED'
        except OSError:
            pass
    return 1
""")  # fmt: skip
# environment
hostile("environment", "environ", "import os\nreturn 'ESCAPED' if 'TRACE_OPT_SECRET' in os.environ else 1")
hostile("environment", "getenv", "import os\nreturn 'ESCAPED' if os.getenv('TRACE_OPT_SECRET') else 1")
hostile(
    "environment",
    "home",
    "import os\nreturn 'ESCAPED' if os.path.expanduser('~/.ssh') != '~/.ssh' and os.listdir(os.path.expanduser('~')) else 1",
)
# network
hostile("network", "tcp", "import socket\nsocket.create_connection(('127.0.0.1', x['port']), 1)\nreturn 'ESCAPED'")
hostile(
    "network",
    "udp",
    "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'a', ('127.0.0.1', x['port']))\nreturn 'ESCAPED'",
)
hostile(
    "network", "name server", "import socket\nsocket.getaddrinfo('localhost', 80)\nsocket.socket()\nreturn 'ESCAPED'"
)
hostile(
    "network",
    "unix socket",
    "import socket\nsocket.socket(socket.AF_UNIX).connect(x['folder'] + '/socket')\nreturn 'ESCAPED'",
)
hostile("network", "bind", "import socket\nsocket.socket().bind(('127.0.0.1', 0))\nreturn 'ESCAPED'")
hostile(
    "network",
    "http",
    "import urllib.request\nurllib.request.urlopen(f\"http://127.0.0.1:{x['port']}\", timeout=1)\nreturn 'ESCAPED'",
)
# processes
hostile("processes", "fork", "import os\npid = os.fork()\nreturn 'ESCAPED'")
hostile("processes", "fork bomb", "import os\nwhile True:\n    os.fork()")
hostile("processes", "subprocess", "import subprocess\nsubprocess.run(['true'])\nreturn 'ESCAPED'")
hostile("processes", "system", "import os\nreturn 'ESCAPED' if os.system('true') == 0 else 1")
hostile("processes", "exec", "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])")
hostile("processes", "kill the host", "import os\nos.kill(x['pid'], 0)\nreturn 'ESCAPED'")
hostile("processes", "kill the worker", "import os\nos.kill(os.getppid(), 9)\nreturn 'ESCAPED'")
hostile("processes", "daemon", "import os\nos.setsid()\nreturn 'ESCAPED'")
hostile("processes", "thread that stays", "import threading\nthreading.Thread(target=print).start()\nreturn 'ESCAPED'")
hostile(
    "processes",
    "trace the host",
    "import ctypes\nr = ctypes.CDLL(None).ptrace(16, x['pid'], 0, 0)\nreturn 'ESCAPED' if r == 0 else 1",
)
hostile(
    "processes",
    "raise own limits",
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nreturn 'ESCAPED'",
)
hostile("processes", "leave at once", "import os\nos._exit(0)")
hostile("processes", "crash", "import ctypes\nctypes.string_at(0)\nreturn 'ESCAPED'")
# time
hostile("time", "loop", "while True:\n    pass", "time")
hostile("time", "loop that catches all", """
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
""", "time")  # fmt: skip
hostile("time", "sum of a range", "return sum(range(10**11))", "time")
hostile("time", "power", "return 3**30_000_000 % 7", "*")
hostile("time", "sleep", "import time\ntime.sleep(60)\nreturn 'ESCAPED'", {"monty": "sleep", "process": "time"})
hostile("time", "regex", "import re\nre.match('(a+)+$', 'a' * 40 + 'b')\nwhile True:\n    pass", "time")
hostile("time", "signals ignored", """
    import signal
    for s in (signal.SIGXCPU, signal.SIGALRM, signal.SIGTERM):
        signal.signal(s, signal.SIG_IGN)
    while True:
        pass
""", only(process="time"))  # fmt: skip
hostile("time", "colliding keys", """
    keys = {}
    for i in range(10**9):
        keys[(i * (2**61 - 1))] = None
        if len(keys) > 5000:
            keys.clear()
""", "time")  # fmt: skip
hostile("time", "spin in a coroutine", """
    async def f(x):
        while True:
            pass
""", "time")  # fmt: skip
# memory
hostile("memory", "list", "return len([0] * 10**10)", "memory")
hostile("memory", "text", "return len('a' * 10**11)", "memory")
hostile("memory", "shift", "return (1 << 10**11) % 3", "memory")
hostile("memory", "growing list", "kept = []\nwhile True:\n    kept.append('a' * 100000 + str(len(kept)))", "memory")
hostile("memory", "growing list that catches", """
    kept = []
    while True:
        try:
            while True:
                kept.append('a' * 1000000 + str(len(kept)))
        except MemoryError:
            pass
""", {"monty": "memory", "process": "time"})  # fmt: skip
hostile("memory", "format width", "return len('{:>99999999999}'.format(1)) and 'ESCAPED'")
hostile("memory", "replace", "s = 'a' * 100000\nwhile True:\n    s = s.replace('a', 'aa' * 100)", "memory")
hostile("memory", "range list", "return len(list(range(10**10)))", "memory")
hostile("memory", "dict", "kept = {}\nwhile True:\n    kept[len(kept)] = 'a' * 10000 + str(len(kept))", "memory")
# recursion
hostile("recursion", "direct", "return f(x)", "recursion")
hostile("recursion", "mutual", "def g(x):\n    return h(x)\ndef h(x):\n    return g(x)\nreturn g(x)", "recursion")
hostile(
    "recursion",
    "getattr",
    "class A:\n    def __getattr__(self, name):\n        return self.other\nreturn A().a",
    only(process="recursion"),
)
hostile(
    "recursion",
    "equality",
    "class A:\n    def __eq__(self, other):\n        return self == other\nreturn A() == A()",
    only(process="recursion"),
)
hostile("recursion", "nested source", "return eval('(' * 5000 + ')' * 5000)")
hostile("recursion", "nested json", "import json\nreturn json.loads('[' * 100000)")
# imports
hostile("imports", "os", "import os\nos.remove(x['secret'])\nreturn 'ESCAPED'")
hostile("imports", "ctypes", "import ctypes\nreturn 'ESCAPED' if ctypes.CDLL(None).fork() > 0 else 1")
hostile("imports", "pickle", "import pickle\nreturn pickle.loads(b\"cos\\nsystem\\n(S'true'\\ntR.\") or 1")
hostile("imports", "by name", "return 'ESCAPED' if __import__('os').listdir('/') else 1")
hostile(
    "imports",
    "importlib",
    "import importlib\nreturn 'ESCAPED' if importlib.import_module('os').listdir(x['folder']) else 1",
)
hostile("imports", "the library", "import trace_opt\nreturn 'ESCAPED'")
hostile("imports", "planted path", "import sys\nsys.path.insert(0, x['folder'])\nimport planted\nreturn 'ESCAPED'")
hostile("imports", "builtins", "return 'ESCAPED' if __builtins__['open'](x['secret']).read() else 1")
# introspection
hostile(
    "introspection",
    "subclasses",
    "return 'ESCAPED' if [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'] else 1",
)
hostile("introspection", "globals", "return f.__globals__['__builtins__']['open'](x['secret']).read() and 'ESCAPED'")
hostile(
    "introspection", "format", "return 'ESCAPED' if 'secret' in '{0.__class__.__init__.__globals__}'.format(x) else 1"
)
hostile("introspection", "frames", """
    import sys
    frame, found = sys._getframe(), False
    while frame:
        found = found or 'TRACE_OPT_SECRET' in repr(frame.f_globals.get('os', ''))
        frame = frame.f_back
    return 'ESCAPED' if found else 1
""")  # fmt: skip
hostile("introspection", "forged answer of the worker", """
    import os
    os.write(4, b'R' + (3).to_bytes(4, 'big') + b'"a"')
    os._exit(0)
""")  # fmt: skip
hostile(
    "introspection",
    "atexit",
    "import atexit\natexit.register(lambda: open('/dev/shm/trace_opt_escape', 'w'))\nreturn 1",
)
hostile(
    "introspection",
    "collector",
    "import gc\nreturn 'ESCAPED' if any('TRACE_OPT_SECRET' in o for o in gc.get_objects() if type(o) is dict and len(o) < 1000) else 1",
)
# output
hostile("output", "print flood", "while True:\n    print('a' * 10000)", {"monty": "output", "process": "time"})
hostile(
    "output",
    "error flood",
    "import sys\nwhile True:\n    print('a' * 10000, file=sys.stderr)",
    {"monty": "output", "process": "time"},
)
hostile("output", "terminal codes", "print('\\x1b[2J' * 10)\nreturn 1")
# results
hostile("results", "huge", "return 'a' * 30_000_000", {"monty": "result", "process": "result"})
hostile(
    "results",
    "small graph, huge tree",
    "y = [1]\nfor _ in range(40):\n    y = [y, y]\nreturn y",
    {"monty": "*", "process": "*"},
)
hostile(
    "results", "one text very often", "y = 'a' * 1000000\nreturn [y] * 100000", {"monty": "result", "process": "result"}
)
hostile("results", "deep", "y = []\nfor _ in range(5000):\n    y = [y]\nreturn y", "result")
hostile("results", "holding itself", "y = []\ny.append(y)\nreturn y", "result")
hostile("results", "lambda", "return lambda: 'ESCAPED'")
hostile("results", "itself", "return f")
hostile("results", "generator", "return (i for i in range(3))")
hostile("results", "class", "return int")
hostile("results", "module", "import json\nreturn json")
hostile(
    "results",
    "instance",
    "class A:\n    def __reduce__(self):\n        return (print, ('ESCAPED',))\n    def __len__(self):\n        return 10**9\n    def __repr__(self):\n        return 'ESCAPED'\nreturn A()",
)
hostile(
    "results", "text that is no text", "class S(str):\n    def __len__(self):\n        return 0\nreturn S('ESCAPED')"
)
hostile("results", "long int", "return 10**20000", "result")
hostile("results", "forged tag", "return {'$': 'instance', 'c': 'os', 'v': {}}")
# exceptions
hostile("exceptions", "exit", "raise SystemExit(0)")
hostile("exceptions", "interrupt", "raise KeyboardInterrupt")
hostile(
    "exceptions",
    "hostile text",
    "class E(Exception):\n    def __str__(self):\n        while True:\n            pass\nraise E()",
    only(process="time"),
)
hostile("exceptions", "long message", "raise ValueError('a' * 10_000_000)")
hostile(
    "exceptions",
    "nested causes",
    "def g(n):\n    try:\n        raise ValueError(n)\n    except ValueError as e:\n        if n:\n            g(n - 1)\n        raise RuntimeError(n) from e\ng(100)",
)
hostile("exceptions", "named like ours", "class TraceError(Exception):\n    pass\nraise TraceError('ESCAPED')")
# functions of the host
hostile("host", "flood of calls", "while True:\n    double(1)", "calls")
hostile("host", "huge argument", "double('a' * 30_000_000)\nreturn 'ESCAPED'", {"monty": "result", "process": "result"})
hostile(
    "host",
    "argument that unfolds",
    "y = [1]\nfor _ in range(40):\n    y = [y, y]\ndouble(y)\nreturn 'ESCAPED'",
    {"monty": "*", "process": "*"},
)
hostile("host", "function as argument", "double(f)\nreturn 'ESCAPED'")
hostile("host", "name that was not given", "return undo(1)")
