"""Zip files of given content, also with a password, which Python reads but does not write."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO


def zip_of(file: Path | BinaryIO, files: dict[str, bytes], **options) -> Path | BinaryIO:
    with zipfile.ZipFile(file, "w", **options) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return file


def encrypt(data: bytes, password: bytes) -> bytes:
    """A copy of a stored zip in the classic encryption (PKWARE's appnote, 6.1)."""
    table = [0] * 256
    for n in range(256):
        value = n
        for _ in range(8):
            value = value >> 1 ^ 0xEDB88320 * (value & 1)
        table[n] = value

    def crc(old: int, byte: int) -> int:
        return old >> 8 ^ table[(old ^ byte) & 255]

    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte: int) -> None:
        keys[0] = crc(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 255)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    out = bytearray()
    for byte in bytes(11) + bytes([zlib.crc32(data) >> 24]) + data:
        stream = keys[2] | 2
        out.append(byte ^ (stream * (stream ^ 1) >> 8 & 255))
        update(byte)
    return bytes(out)


def encrypted_zip_of(path: Path, files: dict[str, bytes], password: bytes) -> Path:
    body, directory = b"", b""
    for name, content in files.items():
        data = encrypt(content, password)
        fields = struct.pack("<HHHHHIIIHH", 20, 1, 0, 0, 33, zlib.crc32(content), len(data),
                             len(content), len(name), 0)
        offset = len(body)
        body += b"PK\x03\x04" + fields + name.encode() + data
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + fields
        directory += struct.pack("<HHHII", 0, 0, 0, 0, offset) + name.encode()
    count = len(files)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\x05\x06" + end)
    return path
