"""`timm-mobilevit-zoo run` is python with the zoo's models: same arguments, exit status, signals and workers."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import fresh
import pytest
import timm
from zoo import hear_interrupts

from timm_mobilevit_zoo import launch

COMMAND = (sys.executable, "-m", "timm_mobilevit_zoo", "run")


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


# Real processes are started only to test that one starts; the others are forked.
def forked(cwd: Path, *args: str) -> tuple[int, str, str]:
    done = fresh.run(["-m", "timm_mobilevit_zoo", "run", *args], cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def start(cwd: Path, *args: str, command: Sequence[str] = COMMAND) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *args],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts if os.name == "posix" else None,
    )


def run(cwd: Path, *args: str) -> tuple[int, str, str]:
    with start(cwd, *args) as process:
        stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def test_a_script_runs_as_under_python(tmp_path: Path) -> None:
    script = """
        import json, sys, timm, sibling
        model = timm.create_model("cloformer_xxs", num_classes=3)
        print(json.dumps([__name__, sys.argv, __file__, type(model).__module__, sibling.VALUE]))
        sys.exit(3)
        """
    write(tmp_path, {"there/script.py": script, "there/sibling.py": "VALUE = 7"})
    status, stdout, stderr = forked(tmp_path, "there/script.py", "--model", "a b", "-m", "--", "-x=1")
    assert status == 3, stderr
    path = str(tmp_path / "there" / "script.py")
    argv = [path, "--model", "a b", "-m", "--", "-x=1"]
    assert json.loads(stdout) == ["__main__", argv, path, "timm_mobilevit_zoo.models.cloformer", 7]
    assert stderr == f"timm-mobilevit-zoo: timm {timm.__version__} from {timm.__file__}\n"


def test_a_module_runs_as_under_python(tmp_path: Path) -> None:
    # A spawned worker imports the module once more, by its name, to find `double`.
    module = """
        import json, multiprocessing, sys
        from .sibling import VALUE

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            import timm
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                doubled = pool.map(double, [VALUE])
            print(json.dumps([__spec__.name, sys.argv, timm.is_model("cloformer_xxs"), doubled]))
        """
    write(tmp_path, {"tool/__init__.py": "", "tool/program.py": module, "tool/sibling.py": "VALUE = 7"})
    status, stdout, stderr = run(tmp_path, "-m", "tool.program", "--flag", "x")
    assert status == 0, stderr
    argv = [str(tmp_path / "tool" / "program.py"), "--flag", "x"]
    assert json.loads(stdout) == ["tool.program", argv, True, [14]]


def test_an_exception_is_the_scripts_own(tmp_path: Path) -> None:
    write(tmp_path, {"script.py": "raise KeyError('its own')"})
    status, stdout, stderr = forked(tmp_path, "script.py")
    assert (status, stdout, stderr.splitlines()[-1]) == (1, "", "KeyError: 'its own'")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGTERM"])
def test_a_signal_reaches_the_script(tmp_path: Path, name: str) -> None:
    # At its end torch imports tabulate where it is installed, and an import then makes python forget what ended it.
    script = """
        import importlib.util, signal, sys, timm
        if importlib.util.find_spec("tabulate"):
            import tabulate
        def caught(number, frame):
            print("caught", signal.Signals(number).name)
            sys.exit(4)
        if sys.argv[1] == "SIGTERM":
            signal.signal(signal.SIGTERM, caught)
        print("ready", flush=True)
        signal.pause()
        """
    write(tmp_path, {"script.py": script})
    ends = []
    for command in (COMMAND, [sys.executable]):
        with start(tmp_path, "script.py", name, command=command) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.Signals[name])
            stdout, stderr = process.communicate(timeout=60)
        assert name == "SIGTERM" or stderr.endswith("KeyboardInterrupt\n")
        ends.append((process.returncode, stdout))
    assert ends[0] == ends[1] == ((4, "caught SIGTERM\n") if name == "SIGTERM" else (-signal.SIGINT, ""))


@pytest.mark.slow
def test_a_timm_checkout_does_not_hide_the_installed_timm(tmp_path: Path) -> None:
    # The checkout works, as a clone of timm's repository would, and differs in its version.
    checkout = f"""
        __path__.append({str(Path(timm.__file__).parent)!r})
        exec(open({timm.__file__!r}).read())
        __version__ = "0.checkout"
        """
    script = """
        import json, sys, timm, timm.layers, sibling, timm_mobilevit_zoo
        print(json.dumps([timm.__version__, timm.layers.__file__, timm.is_model("cloformer_xxs")]))
        """
    write(tmp_path, {"timm/__init__.py": checkout, "script.py": script, "sibling.py": ""})
    plain = [sys.executable, "-c", "import timm; print(timm.__version__)"]
    assert subprocess.check_output(plain, cwd=tmp_path, text=True) == "0.checkout\n", (
        "the test's checkout hides nothing"
    )
    status, stdout, stderr = run(tmp_path, "script.py")
    assert status == 0, stderr
    assert json.loads(stdout) == [timm.__version__, str(Path(timm.__file__).parent / "layers" / "__init__.py"), True]
    assert stderr == f"timm-mobilevit-zoo: timm {timm.__version__} from {timm.__file__}\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has spawn alone")
def test_loader_workers_start_by_every_method(tmp_path: Path) -> None:
    script = """
        import json, multiprocessing, os
        import torch
        from sibling import SCALE

        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                return index * SCALE, os.getpid()

        if __name__ == "__main__":
            seen = {}
            for method in multiprocessing.get_all_start_methods():
                loader = torch.utils.data.DataLoader(Data(), 2, num_workers=2, multiprocessing_context=method)
                batches = list(loader)
                values = torch.cat([value for value, _ in batches]).tolist()
                workers = set(torch.cat([pid for _, pid in batches]).tolist()) - {os.getpid()}
                seen[method] = [values, len(workers)]
            print(json.dumps(seen))
        """
    write(tmp_path, {"script.py": script, "sibling.py": "SCALE = 10"})
    status, stdout, stderr = run(tmp_path, "script.py")
    assert status == 0, stderr
    seen = json.loads(stdout)
    assert seen == {method: [[0, 10, 20, 30], 2] for method in ("fork", "spawn", "forkserver")}


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ([], "no script given"),
        (["absent.py", "--model", "x"], "no script file 'absent.py'"),
        (["--model", "x"], "no script file '--model'"),
        (["-m"], "-m needs the name of a module"),
        (["-m", "absent_module"], "no module named 'absent_module'"),
    ],
)
def test_a_missing_program_is_named(
    args: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        launch.run(args)
    assert stop.value.code == 2
    _, err = capsys.readouterr()
    assert f"run: {problem}; use: timm-mobilevit-zoo run SCRIPT [ARGS...]" in err
