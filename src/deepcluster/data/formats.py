"""Which files are images: by the ending of their name, or where that says nothing, by their first bytes."""

from __future__ import annotations

from pathlib import PurePosixPath

#: Pillow's name of each format that is read -> the endings of its files. Left out are formats that run other programs
#: (EPS) or are documents. HEIF takes the extra `heic`; without it such files are bad images that say so.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "WEBP": (".webp",), "BMP": (".bmp", ".dib"),
    "GIF": (".gif",), "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "MPO": (".mpo",),
    "JPEG2000": (".jp2", ".j2k"), "AVIF": (".avif", ".avifs"), "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
    "TGA": (".tga",), "ICO": (".ico",), "PCX": (".pcx",), "SGI": (".sgi",), "DDS": (".dds",),
}  # fmt: skip

#: Bytes of a file, and pixels of a picture, beyond which it is a bad image.
BYTES = 1 << 30
PIXELS = 1 << 28

#: File name endings that are taken for images; what is inside decides later.
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)

#: Pictures to their owner that are not read here: folders that hold some say how many were left out.
UNREAD_PICTURES = (
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".psd", ".jxl", ".svg", ".exr", ".hdr",
    ".eps", ".xcf", ".dcm",
)  # fmt: skip

#: What may hold images, which are not read where it lies among others: folders and archives say so.
CONTAINERS = (".tar", ".zip", ".parquet", ".tgz", ".gz", ".7z", ".rar")

#: Endings of files that lie beside images and are not looked into.
PLAIN = frozenset([
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".py", ".log", ".npy", ".npz",
    ".pt", ".pth", ".pdf", ".mp4", ".mov", ".db", ".ini", ".cls", *CONTAINERS,
])  # fmt: skip

#: Bytes that `format_of_head` wants to see.
HEAD = 32
MAGIC = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"), (b"\xff\x4f\xff\x51", "JPEG2000"), (b"DDS \x7c\0\0\0", "DDS"),
)  # fmt: skip


def has_image_ending(name: str) -> bool:
    """Whether a file or archive member is named as an image."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


def format_of_head(head: bytes) -> str | None:
    """Pillow's name of the format that a file's first `HEAD` bytes announce; None where they announce no image.

    Formats without a mark of their own (TGA, ICO, PCX, SGI) are known by their endings only.
    """
    for magic, name in MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[6:10] == bytes(4) and head[15:18] == bytes(3):  # reserved; a small header's size
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() and head[3:4] in b"0123456789#":
        return "PPM"
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, len(head), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}:
            return "HEIF"
    return None
