"""The recipes for Docker and systemd, and the client: all that they name is there and works."""

import configparser
import http.server
import json
import re
import runpy
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import typer
from deploy_helpers import make_continual, shades, strange
from serving_helpers import png

pytest.importorskip("uvicorn")

from learnkit.cli.app import app
from learnkit.serving.app import create_app

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def parsed(command):
    """The options of a `learnkit` command by name, as its own parser takes them."""
    program, *words = command
    assert Path(program).name == "learnkit"
    group = typer.main.get_command(app)
    name, found, rest = group.resolve_command(group.make_context("learnkit", list(words)), words)
    return name, found.make_context(name, rest).params


class TestDocker:
    LINES = re.sub(r"\\\n", "", (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")).splitlines()
    STEPS = [line.split(" ", 1) for line in LINES if line and not line.startswith("#")]

    def arguments(self, verb):
        return [rest for name, rest in self.STEPS if name == verb]

    def test_all_that_it_copies_is_there_and_all_that_is_built_from_is_copied(self):
        copied = [name for rest in self.arguments("COPY") for name in rest.split()[:-1]]
        assert all((ROOT / name).exists() for name in copied)
        built = {"setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"}
        assert {*copied} == built | {"requirements-serve.txt", "learnkit"}

    def test_it_installs_pins_and_then_the_package_alone(self):
        pins, package, user = self.arguments("RUN")
        assert shlex.split(pins)[-2:] == ["-r", "requirements-serve.txt"]
        assert shlex.split(package)[-2:] == ["--no-deps", "."]
        assert shlex.split(user)[0] == "useradd"
        names = [name for name, _ in self.STEPS]
        assert names.index("USER") < names.index("CMD")
        assert self.arguments("USER") == [shlex.split(user)[-1]]

    def test_what_it_runs_is_a_command_at_the_port_that_it_shows_and_probes(self):
        (command,) = map(json.loads, self.arguments("CMD"))
        name, options = parsed(command)
        assert (name, options["host"], str(options["model"])) == ("serve", "0.0.0.0", "/model")
        assert self.arguments("EXPOSE") == [str(options["port"])]
        (probe,) = self.arguments("HEALTHCHECK")
        assert f"http://127.0.0.1:{options['port']}/ready" in probe

    def test_its_probe_tells_ready_from_not_ready(self, served):
        (probe,) = self.arguments("HEALTHCHECK")
        program, flag, code = json.loads(probe[probe.index("[") :])
        assert (program, flag) == ("python", "-c")
        exec(code.replace("http://127.0.0.1:8000", served(make_continual({"ok": 3, "bad": 3}))))
        with pytest.raises(OSError, match="503"):
            exec(code.replace("http://127.0.0.1:8000", served(make_continual())))


class TestSystemd:
    FILE = EXAMPLES / "learnkit.service"

    def unit(self):
        found = configparser.RawConfigParser(strict=True)
        found.optionxform = str
        found.read(self.FILE, encoding="utf-8")
        return found

    def test_it_serves_what_it_may_write_and_reloads_by_the_signal_for_that(self):
        service = self.unit()["Service"]
        name, options = parsed(shlex.split(service["ExecStart"]))
        assert name == "serve"
        assert str(options["model"]).startswith(f"/var/lib/{service['StateDirectory']}/")
        assert service["ExecReload"].split()[1:] == ["-HUP", "$MAINPID"]
        assert service["Restart"] == "on-failure"

    def test_what_it_says_of_teaching_is_a_command(self):
        text = self.FILE.read_text(encoding="utf-8")
        added = re.search(r"add (--allow-extend --token-file \S+) to", text)[1]
        command = f"{self.unit()['Service']['ExecStart']} {added}"
        assert parsed(shlex.split(command))[1]["allow_extend"] is True

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
    def test_systemd_understands_every_line(self, tmp_path):
        text = self.FILE.read_text(encoding="utf-8")
        program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)[1]
        file = tmp_path / "learnkit.service"
        file.write_text(text.replace(program, "/bin/true"), encoding="utf-8")
        command = ["systemd-analyze", "verify", str(file)]
        run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        told = [line for line in run.stderr.splitlines() if "learnkit.service" in line]
        assert (run.returncode, told) == (0, [])


@pytest.fixture
def served():
    """A function that serves a model at an address of this machine, and gives the address."""
    import asyncio

    import uvicorn

    running = []

    def serve(model, **options):
        config = uvicorn.Config(create_app(model, **options), port=0, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            thread.join(0.02)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join(20)


class TestClient:
    MAIN = staticmethod(runpy.run_path(str(EXAMPLES / "http_client.py"))["main"])

    @pytest.fixture
    def images(self, tmp_path):
        content = {"ok.png": png(shades("ok", 1)[0]), "odd.png": png(strange(1)[0]), "no.png": b"x"}
        for name, data in content.items():
            (tmp_path / name).write_bytes(data)
        return {name: str(tmp_path / name) for name in content}

    def test_lines_and_exit_codes_say_what_was_decided(self, served, images, capsys, monkeypatch):
        monkeypatch.delenv("LEARNKIT_PREDICT_TOKEN", raising=False)
        address = served(make_continual({"ok": 6, "bad": 5}))
        assert self.MAIN([address, images["ok.png"]]) == 0
        assert capsys.readouterr().out == f"{images['ok.png']}\tok\n"
        assert self.MAIN([address, *images.values()]) == 1
        known, unknown, bad = capsys.readouterr().out.splitlines()
        assert (known.split("\t")[1], unknown.split("\t")[1]) == ("ok", "UNKNOWN")
        assert bad.startswith(f"{images['no.png']}\tERROR image 'no.png' cannot be read")
        assert self.MAIN([address, images["no.png"]]) == 1  # alone: 422

    def test_a_token_that_lacks_is_an_error_at_once(self, served, images, capsys, monkeypatch):
        token = "staple-of-the-shop-floor"
        address = served(make_continual({"ok": 6, "bad": 5}), predict_token=token)
        monkeypatch.delenv("LEARNKIT_PREDICT_TOKEN", raising=False)
        assert self.MAIN([address, images["ok.png"]]) == 2
        assert re.search(r"^401: the token .* \(request [0-9a-f]{32}\)", capsys.readouterr().err)
        monkeypatch.setenv("LEARNKIT_PREDICT_TOKEN", token)
        assert self.MAIN([address, images["ok.png"]]) == 0

    def test_a_busy_server_is_asked_again_and_no_server_given_up(self, images, capsys, monkeypatch):
        waited, answers = [], [(503, b"<html>"), (503, b"{}"), (200, b'{"predictions": []}')]

        class Busy(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                status, body = answers.pop(0)
                entry = {"decision": "ok"}
                body = json.dumps({"predictions": [entry]}).encode() if status == 200 else body
                self.send_response(status)
                self.send_header("Retry-After", "7")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                """Nothing."""

        monkeypatch.setattr("time.sleep", waited.append)
        with http.server.HTTPServer(("127.0.0.1", 0), Busy) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            address = f"http://127.0.0.1:{server.server_address[1]}"
            try:
                assert self.MAIN([address, images["ok.png"]]) == 0
            finally:
                server.shutdown()
                thread.join()
        assert [seconds for seconds in waited if seconds != 0.01] == [7.0, 7.0]
        assert self.MAIN([address, images["ok.png"]]) == 2
        assert "cannot be reached" in capsys.readouterr().err
        assert self.MAIN([address, "no such file"]) == 2
        assert self.MAIN([]) == 2
