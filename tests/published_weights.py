"""Checkpoints as the original publishes them, with random numbers, and a server that has them."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from yolov7_simple.models.rtodlab import build_network, original_key


def original(size, num_classes=80):
    """As the original saves a detector, with random numbers."""
    wanted = build_network(size, num_classes).state_dict()
    return {original_key(key, size): draw(key, value).to(value.dtype) for key, value in wanted.items()}


def draw(key, like):
    """Random numbers that keep activations finite."""
    drawn = torch.rand(like.shape)
    if key.endswith('running_var'):
        return drawn + 0.5
    return (drawn - 0.5) / 10 if drawn.ndim == 4 else drawn


def original_backbone(size):
    """As the original saves a network for ImageNet: without `backbone.`, with a classifier."""
    layers = {key.removeprefix('backbone.'): one for key, one in original(size).items() if key.startswith('backbone.')}
    return {**layers, 'fc.weight': torch.rand(1000, 8), 'fc.bias': torch.rand(1000)}


class Release:
    """A folder of files, served; `answer` may change what is sent, and `asked` lists what was asked for."""

    def __init__(self, folder):
        self.folder, self.asked, self.answer = folder, [], lambda body: body
        release = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                release.asked.append(self.path)
                file = release.folder / self.path.lstrip('/')
                if not file.is_file():
                    self.send_error(404)
                    return
                body = file.read_bytes()
                self.send_response(200)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(release.answer(body))

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.address = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
