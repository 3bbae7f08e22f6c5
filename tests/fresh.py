"""Processes as fresh as a user's, but for the seconds that importing torch and timm takes.

One process has imported the package and does nothing but fork. A child gets its own environment, folder and arguments,
reads the Hub's settings from them, as its client does when it is imported, and then runs Python as `python -c` or
`python -m timm_mobilevit_zoo` does. What tests the start itself, or needs another copy of the package, starts a real
process instead.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["run"]

# Reads a request a line; answers with the exit status, negative for a signal.
PARENT = r"""
import json, os, signal, sys, types
import timm, timm_mobilevit_zoo, timm_mobilevit_zoo.train, timm_mobilevit_zoo.export, huggingface_hub.hf_api
import accelerate, matplotlib.figure, safetensors.torch, timm_mobilevit_zoo_cli
import huggingface_hub.constants as constants

def settings():
    "Read the Hub's settings from the environment again, and put them wherever they were copied to."
    import importlib
    importlib.reload(constants)
    own = {key: value for key, value in vars(constants).items() if key.isupper()}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "huggingface_hub":
            for key in own.keys() & vars(module).keys():
                setattr(module, key, own[key])
    huggingface_hub.hf_api.api.endpoint = constants.ENDPOINT  # whose methods are the client's functions

def child(ask):
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fd, path in ((1, ask["stdout"]), (2, ask["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), fd)
    os.environ.clear()
    os.environ.update(ask["env"])
    os.chdir(ask["cwd"])
    signal.alarm(ask["timeout"])
    settings()
    kind, what, *sys.argv[1:] = ask["args"]
    sys.path.insert(0, "" if kind == "-c" else os.getcwd())
    try:
        if kind == "-m":
            assert what == "timm_mobilevit_zoo"
            timm_mobilevit_zoo_cli.main()
        else:
            sys.argv[0] = "-c"
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os._exit(child(json.loads(line)))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@cache
def _parent():
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    line = process.stdout.readline()
    while line and line != "ready\n":  # whatever an import has to say
        line = process.stdout.readline()
    assert line, "the parent of fresh processes has ended"
    return process


def run(args, *, cwd, env=None, timeout=200):
    """Run Python with arguments that begin with `-c CODE` or `-m timm_mobilevit_zoo`; return a `CompletedProcess`."""
    args, env = [str(arg) for arg in args], dict(os.environ if env is None else env)
    if not hasattr(os, "fork"):  # Windows
        command = [sys.executable, *args]
        return subprocess.run(command, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True)
    parent = _parent()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        ask = {"args": args, "cwd": str(cwd), "env": env, "stdout": str(out), "stderr": str(err), "timeout": timeout}
        parent.stdin.write(json.dumps(ask) + "\n")
        parent.stdin.flush()
        status = int(parent.stdout.readline())
        said, complained = (path.read_text(errors="replace") if path.exists() else "" for path in (out, err))
    return subprocess.CompletedProcess([sys.executable, *args], status, said, complained)
