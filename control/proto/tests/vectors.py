#!/usr/bin/env python3
"""Computes a WireGuard handshake from the paper alone, in both suites, to check src/noise.rs against.

Primitives: Python's hashlib and hmac, and X25519 and the AEADs of the package `cryptography`.
Prints the constants of src/noise/tests.rs; run it again only to change the inputs.
"""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def hash_(data):
    return hashlib.blake2s(data).digest()


def mac(key, data):
    return hashlib.blake2s(data, key=key, digest_size=16).digest()


def kdf(count, key, data):
    secret = hmac.new(key, data, hashlib.blake2s).digest()
    keys, previous = [], b""
    for number in range(1, count + 1):
        previous = hmac.new(secret, previous + bytes([number]), hashlib.blake2s).digest()
        keys.append(previous)
    return keys


def public(private):
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def dh(private, public):
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def hchacha20(key, nonce):
    def rotate(value, bits):
        return (value << bits | value >> 32 - bits) & 0xFFFFFFFF

    s = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))
    rounds = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
              (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(10):
        for a, b, c, d in rounds:
            for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                s[x] = (s[x] + s[y]) & 0xFFFFFFFF
                s[z] = rotate(s[z] ^ s[x], bits)
    return struct.pack("<8I", *s[:4], *s[12:])


def xaead(key, nonce, plain, auth):
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(bytes(4) + nonce[16:], plain, auth)


def show(name, value):
    print(f'    {name}: "{value.hex()}",')


# draft-irtf-cfrg-xchacha-03, section 2.2.1
assert hchacha20(bytes(range(32)), bytes.fromhex("000000090000004a0000000031415927")).hex() == \
    "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"

si, sr, ei, er = bytes([1] * 32), bytes([2] * 32), bytes([3] * 32), bytes([4] * 32)
psk, cookie, nonce = bytes([5] * 32), bytes([6] * 16), bytes([7] * 24)
timestamp = bytes.fromhex("400000006b49d20a01000000")
index_i, index_r = 0x11223344, 0x55667788


def handshake(name, aead):
    """Prints the handshake, and returns the initiation's MAC1."""
    # 5.4.2
    c = hash_(name)
    show("chaining_key", c)
    h = hash_(c + b"WireGuard v1 zx2c4 Jason@zx2c4.com")
    show("identified", h)
    h = hash_(h + public(sr))
    (c,) = kdf(1, c, public(ei))
    h = hash_(h + public(ei))
    c, k = kdf(2, c, dh(ei, public(sr)))
    sealed_static = aead(k).encrypt(bytes(12), public(si), h)
    h = hash_(h + sealed_static)
    c, k = kdf(2, c, dh(si, public(sr)))
    sealed_timestamp = aead(k).encrypt(bytes(12), timestamp, h)
    h = hash_(h + sealed_timestamp)
    initiation = struct.pack("<II", 1, index_i) + public(ei) + sealed_static + sealed_timestamp
    # 5.4.4
    initiation += mac(hash_(b"mac1----" + public(sr)), initiation)
    initiation_mac1 = initiation[-16:]
    initiation += mac(cookie, initiation)
    show("initiation", initiation)

    # 5.4.3
    (c,) = kdf(1, c, public(er))
    h = hash_(h + public(er))
    (c,) = kdf(1, c, dh(er, public(ei)))
    (c,) = kdf(1, c, dh(er, public(si)))
    c, t, k = kdf(3, c, psk)
    h = hash_(h + t)
    sealed_nothing = aead(k).encrypt(bytes(12), b"", h)
    response = struct.pack("<III", 2, index_r, index_i) + public(er) + sealed_nothing
    response += mac(hash_(b"mac1----" + public(si)), response)
    response += bytes(16)
    show("response", response)

    # 5.4.5
    send, receive = kdf(2, c, b"")
    show("initiator_sends", send)
    show("responder_sends", receive)
    return initiation_mac1


print("const CHACHA20_POLY1305: Vector = Vector {")
initiation_mac1 = handshake(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s", ChaCha20Poly1305)
print("};\nconst AES_256_GCM: Vector = Vector {")
handshake(b"Noise_IKpsk2_25519_AESGCM_BLAKE2s", AESGCM)
print("};")

# 5.4.7
sealed_cookie = xaead(hash_(b"cookie--" + public(sr)), nonce, cookie, initiation_mac1)
cookie_reply = struct.pack("<II", 3, index_i) + nonce + sealed_cookie
print(f'const COOKIE_REPLY: &str = "{cookie_reply.hex()}";')
