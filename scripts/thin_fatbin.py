#!/usr/bin/env python3
"""thin_fatbin.py LIBRARY sm_90: zeroes the machine code of other GPUs in a library, in place, so that it compresses.

CUDA's fat binaries lie in the section `.nv_fatbin`, a row of containers of one image for each GPU. Headers and offsets stay, so
the driver finds the image of its GPU as before."""
import mmap
import struct
import sys

MAGIC = 0xBA55ED50


def sections(data):
    """Name, offset and size of each section of an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + k * size) for k in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length, *_ in headers:
        start = strings + name
        yield data[start:data.find(b"\0", start)], offset, length


def main():
    path, gpu = sys.argv[1:]
    wanted = int(gpu.removeprefix("sm_"))
    kept = gone = 0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for name, at, length in sections(data):
            end = at + length
            while name == b".nv_fatbin" and at < end:
                magic, _, header, content = struct.unpack_from("<IHHQ", data, at)
                if magic != MAGIC:
                    at += 8
                    continue
                image, at = at + header, at + header + content
                while image < at:
                    _, _, head, size = struct.unpack_from("<HHIQ", data, image)
                    (capability,) = struct.unpack_from("<I", data, image + 28)
                    if capability == wanted:
                        kept += size
                    else:
                        data[image + head:image + head + size] = bytes(size)
                        gone += size
                    image += head + size
    if not kept:
        sys.exit(f"{path}: no machine code for {gpu}")
    print(f"{path}: {kept / 1e6:.1f} MB for {gpu} kept, {gone / 1e6:.1f} MB zeroed", file=sys.stderr)


if __name__ == "__main__":
    main()
