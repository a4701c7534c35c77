"""An OpenID provider on Authlib, which checks PKCE. Prints its port, and ends when its input does."""

import logging
import os
import sys
import threading
import warnings

warnings.simplefilter("ignore")
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

import werkzeug.serving
from authlib.integrations import flask_oauth2
from authlib.oauth2.rfc7636 import CodeChallenge

import oidc_provider_mock
from oidc_provider_mock import _app

challenges = {}


class Remembering(CodeChallenge):
    """The provider keeps no challenges; this does."""

    def get_authorization_code_challenge(self, code):
        return challenges.get(code.code, (None, None))[0]

    def get_authorization_code_challenge_method(self, code):
        return challenges.get(code.code, (None, None))[1]


save = _app.AuthorizationCodeGrant.save_authorization_code


def save_with_challenge(self, code, request):
    data = request.payload.data
    challenges[code] = (data.get("code_challenge"), data.get("code_challenge_method"))
    return save(self, code, request)


_app.AuthorizationCodeGrant.save_authorization_code = save_with_challenge
register = flask_oauth2.AuthorizationServer.register_grant


def register_with_challenge(self, grant, extensions=None):
    if grant is _app.AuthorizationCodeGrant:
        extensions = [*(extensions or []), Remembering(required=True)]
    return register(self, grant, extensions)


flask_oauth2.AuthorizationServer.register_grant = register_with_challenge

logging.getLogger("werkzeug").setLevel(logging.ERROR)
app = oidc_provider_mock.app(require_nonce=True)
server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
