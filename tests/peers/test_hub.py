"""A name on the hub, through the real huggingface_hub: a hub on this machine, and one that does not answer.

Needs huggingface_hub (requirements-real.txt); without it every test here is skipped, and says so.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.formats.export import export_pretrained

pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing: pip install -r requirements-real.txt")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import torch
from minift.formats.pretrained import load_pretrained
model, tokenizer = load_pretrained("some-one/a-model")
print("logits", model(torch.tensor([[1, 2, 3]])).tolist())
"""
CHAT = "import sys; from minift.__main__ import main; sys.exit(main(['chat', '--model', 'some-one/a-model']))"


def run(code, endpoint, cache):
    """The code in a fresh Python, whose hub is at `endpoint`."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **settings}, capture_output=True, text=True,
                          encoding="utf-8", timeout=300, check=False)


def serve(files, asked):
    """A hub with one model, of these files (name -> bytes), on a free port; it notes the files that are fetched."""
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            place, headers = self.path.partition("?")[0], {"X-Repo-Commit": COMMIT}
            name = place.rpartition("/")[2]
            if "/resolve/" in place and name in files:
                body = files[name]
                headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
                asked.append(name)
            elif "/tree/" in place:
                body = json.dumps([{"type": "file", "path": name, "size": len(data), "oid": COMMIT}
                                   for name, data in files.items()]).encode()
            else:
                body = json.dumps({"id": "some-one/a-model", "sha": COMMIT, "private": False,
                                   "siblings": [{"rfilename": name} for name in files]}).encode()
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args):
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_model_is_downloaded_and_opened(tmp_path):
    """The model of the hub, the same logits; weights that could run code are not even asked for."""
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(31, 24, 1, 2, 8, 12)).eval()
    export_pretrained(model, None, tmp_path / "there")
    files = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} | {"pytorch_model.bin": b"evil"}
    asked = []
    server = serve(files, asked)
    try:
        done = run(LOAD, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout.partition("logits ")[2]))
    torch.testing.assert_close(found, model(torch.tensor([[1, 2, 3]])).detach(), atol=1e-6, rtol=0)
    assert {"config.json", "model.safetensors"} <= set(asked) and "pytorch_model.bin" not in asked


def test_without_a_network_there_is_one_sentence(tmp_path):
    """No hub answers: the command ends with 2 and one line, that names the model and the way out; no traceback."""
    done = run(CHAT, "http://127.0.0.1:9", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last, = [line for line in done.stderr.splitlines() if "some-one/a-model" in line]
    assert "network" in last and "give a folder" in last
