"""`autoglm chat` and `autoglm bench` before the real mesh, each in a process of its own."""

import json
import subprocess
from pathlib import Path

from autoglm.cli.api import DEFAULT_URL, audio_part, image_part
from autoglm.cli.isolation import free_ports

from ..cases import save, screen_cases
from ..mesh import Mesh, command


def run(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), input=typed, capture_output=True, text=True)


def test_a_question(mesh: Mesh) -> None:
    done = run("chat", "你是谁?", "--url", mesh.http_url)
    assert done.returncode == 0, done.stderr
    assert "AutoGLM-Phone" in done.stdout


def test_a_screenshot_and_a_recording(mesh: Mesh, tmp_path: Path) -> None:
    case = screen_cases("open", "home", 1, seed=41)[0]
    image, audio = save(case.image, tmp_path), save(case.audio, tmp_path)
    assert image_part(image) == case.image
    assert audio_part(audio) == case.audio
    files = ("--image", str(image), "--audio", str(audio))
    done = run("chat", *files, "--thinking", "--url", mesh.http_url)
    assert done.returncode == 0, done.stderr
    thought, answer = done.stdout.splitlines()
    assert thought
    assert answer.startswith("<answer>")


def test_a_conversation(mesh: Mesh, tmp_path: Path) -> None:
    case = screen_cases("which_app", "app", 1, seed=42)[0]
    typed = f"你是谁?\n/image {tmp_path}/nothing.png\n/image {save(case.image, tmp_path)}\n{case.words}\n/quit\nnever\n"
    done = run("chat", "--url", mesh.http_url, "--system", "你是一个手机助手。", typed=typed)
    assert done.returncode == 0
    assert "AutoGLM-Phone" in done.stdout
    assert "nothing.png cannot be read" in done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_a_server_that_is_not_there() -> None:
    (port,) = free_ports(1)
    url = DEFAULT_URL.replace("8000", str(port))
    for arguments in (("chat", "hi"), ("chat",), ("bench", "smoke", "--requests", "1")):
        done = run(*arguments, "--url", url)
        assert done.returncode == 1
        assert "autoglm serve" in done.stderr.splitlines()[-1]


def test_a_file_that_the_server_refuses(mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no image")
    done = run("chat", "hi", "--image", str(tmp_path / "words.png"), "--url", mesh.http_url)
    assert done.returncode == 1
    assert "not a PNG, JPEG, WebP or GIF image" in done.stderr


def test_bench_smoke(mesh: Mesh, tmp_path: Path) -> None:
    done = run("bench", "smoke", "--url", mesh.http_url, "--requests", "2", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (written,) = tmp_path.glob("smoke-*.json")
    assert json.loads(written.read_text()) == found
    assert (tmp_path / f"{written.stem}.md").read_text().startswith("# autoglm bench smoke")
    assert found["machine"]["cores"]
    assert found["versions"]["ray"]
    cases = {(row["case"]["workload"], row["case"]["media"], row["case"]["concurrency"]): row for row in found["rows"]}
    assert {concurrency for _, _, concurrency in cases} == {1, 16}
    for (workload, media, _), row in cases.items():
        assert len(row["first_token"]["rounds"]) == 5
        assert row["tokens_per_second"]["median"] > 0
        assert row["stages"]["prefill"] > 0
        assert ("miss" in row["cache"]) == (media == "new"), workload


def test_the_bundle_is_asked_what_it_can_do(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = run("eval", "--limit", "100", "--seed", "5", "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads(out.read_text()) == report
    assert {row["source"] for row in report["rows"]} == {"text", "screen", "screen+speech", "speech"}
    assert sum(row["n"] for row in report["rows"]) == 400
    right = {(row["source"], row["task"]): row["accuracy"] for row in report["rows"]}
    assert right["text", "identity"] >= 0.9
    assert report["figures"]["transcript_cer_zh"] < 0.1
    assert report["figures"]["gate_auc_image"] > 0.5


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    done = run("eval", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("autoglm eval: no bundle at")
