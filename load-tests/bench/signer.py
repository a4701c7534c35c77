"""An issuer of tokens. Runs as a process of its own, in the environment that has the library for it:

    signer.py FOLDER COUNT     writes public.pem, jwks.json, `token` with one token and `tokens` with COUNT others
"""

import base64
import json
import sys
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ISSUER = "https://issuer.example"
AUDIENCE = "bench"
KEY_ID = "bench"
LIFE = 24 * 3600


def main():
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(pem)
    (folder / "jwks.json").write_text(json.dumps({"keys": [jwk(public.public_numbers())]}))
    (folder / "token").write_text(f"Bearer {token(private, 'the-same')}\n")
    (folder / "tokens").write_text("".join(f"Bearer {token(private, str(n))}\n" for n in range(count)))


def jwk(numbers):
    modulus = numbers.n.to_bytes(256, "big")
    return {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY_ID, "n": base64url(modulus), "e": "AQAB"}


def token(private, identifier):
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "mobile", "iat": now, "exp": now + LIFE, "jti": identifier}
    claims |= {"scope": "orders:read orders:write", "name": "A Caller", "email": "caller@example.com"}
    parts = [{"alg": "RS256", "typ": "JWT", "kid": KEY_ID}, claims]
    signed = ".".join(base64url(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    signature = private.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{base64url(signature)}"


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


if __name__ == "__main__":
    main()
