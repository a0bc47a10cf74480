"""Lines and pages of text drawn with DejaVu's fonts, for models that read pictures."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from adapter import bare, load
from catalog import unpacked

FONTS = Path("/usr/share/fonts/truetype/dejavu")
FACES = ["DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSans-Bold.ttf"]
LINES = [
    "The quick brown fox jumps over the lazy dog",
    "Invoice No. 2024-0917",
    "Total amount: 1,284.50 EUR",
    "Please keep this receipt",
    "Opening hours 9:00 - 17:30",
    "Chapter 4: Results",
    "https://www.example.org/docs?id=42",
    "WARNING: HIGH VOLTAGE",
    "Room 305, second floor",
    "E = mc^2 (1905)",
    "thank you for your visit!",
    "Ok",
]
VIETNAMESE = [
    "Cộng hòa xã hội chủ nghĩa Việt Nam",
    "Độc lập - Tự do - Hạnh phúc",
    "Hôm nay trời đẹp quá",
    "Số điện thoại: 0912 345 678",
    "Nguyễn Thị Minh Khai, Quận 1",
    "Tổng cộng: 1.250.000 đồng",
    "Xin vui lòng giữ lại hóa đơn",
    "Giờ mở cửa từ 8h đến 17h30",
    "Trường Đại học Bách khoa Hà Nội",
    "Cảm ơn quý khách",
]
COLUMN = [
    "Reading order is found", "from where lines stand", "on the page, and from", "what they say. A line in", "the left column comes",
    "before one in the right", "column, however high it", "stands. Tables are read", "row by row, and notes", "come at the end.",
]  # fmt: skip


def font(face, size):
    return ImageFont.truetype(str(FONTS / FACES[face % len(FACES)]), size)


def worn(image, seed):
    """What a camera adds: a soft lens and noise."""
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float64)
    noise = np.random.default_rng(seed).normal(0, 6, soft.shape)
    return np.clip(soft + noise, 0, 255).astype(np.uint8)


@cache
def line(text, i):
    """A line as BGR, dark on light or light on dark, tilted a little."""
    type_ = font(i, 28 + 3 * (i % 4))
    width = int(type_.getlength(text)) + 24
    ink, paper = ((20, 20, 40), (245, 243, 235)) if i % 5 else ((250, 250, 250), (30, 60, 90))
    image = Image.new("RGB", (width, type_.size + 22), paper)
    ImageDraw.Draw(image).text((12, 8), text, ink, type_)
    return worn(image.rotate((i % 3 - 1) * 0.7, Image.Resampling.BICUBIC, fillcolor=paper), i)


@cache
def page(i):
    """A page with a title, two columns, a table and a note: BGR, and the boxes and texts of its lines."""
    texts = VIETNAMESE if i % 2 else COLUMN
    image = Image.new("RGB", (760, 1000), (250, 250, 246))
    draw, boxes, said = ImageDraw.Draw(image), [], []

    def put(x, y, text, type_):
        draw.text((x, y), text, (25, 25, 25), type_)
        boxes.append(draw.textbbox((x, y), text, type_))
        said.append(text)

    put(150, 40, LINES[5 + i], font(3, 36))
    for column in range(2):
        for k, text in enumerate(texts):
            put(50 + 350 * column, 130 + 38 * k, text, font(i, 20 if i % 2 else 24))
    for k in range(5):
        for column, text in enumerate((LINES[k][:14], str(17 * k + i), f"{k * 3.5:.2f}")):
            put(80 + 250 * column, 600 + 42 * k, text, font(2, 22))
    put(50, 940, LINES[10], font(1, 16))
    return worn(image, 50 + i), np.array(boxes, np.float32), said


def gray(image):
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def where(boxes):
    """Boxes in steps of 4 pixels: a decision that one pixel does not turn."""
    return f"{len(boxes)} boxes: {np.round(np.asarray(boxes, np.float64) / 4).astype(int).tolist()}"


def detect(session, package, module):
    """PP-OCR's detection as its package configures it."""
    utils = load(package, f"{module}.utils")
    before = utils.DetPreProcess(736, "min", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    after = utils.DBPostProcess(thresh=0.3, box_thresh=0.5, unclip_ratio=1.6, use_dilation=True)
    decisions = []
    for i in range(3):
        image = page(i)[0]
        score = session.run(None, {"x": before(image)})[0]
        boxes, scores = after(score, image.shape[:2])
        boxes = sorted(np.asarray(boxes).reshape(-1, 8).tolist(), key=lambda b: (b[1], b[0]))
        decisions.append((where(boxes), float(np.min(scores)) if len(scores) else None))
    return decisions


def detect4(session):
    return detect(session, "rapidocr-onnxruntime", "rapidocr_onnxruntime.ch_ppocr_det")


def detect6(session):
    return detect(session, "rapidocr", "rapidocr.ch_ppocr_det")


def characters(name):
    import onnx
    from catalog import model_path

    model = onnx.load(model_path(name), load_external_data=False)
    return next(p.value for p in model.metadata_props if p.key == "character").splitlines()


def recognize4(session):
    rec = load("rapidocr-onnxruntime", "rapidocr_onnxruntime.ch_ppocr_rec.text_recognize")
    decode = rec.CTCLabelDecode(character=characters("ppocr4-rec"))
    runs = lambda x: session.run(None, {"x": x})
    reader = bare(rec.TextRecognizer, session=runs, postprocess_op=decode, rec_batch_num=6, rec_image_shape=[3, 48, 320])
    found, _ = reader([line(text, i) for i, text in enumerate(LINES)])
    return [(text, float(score)) for text, score, *_ in found]


def recognize6(session):
    rec = load("rapidocr", "rapidocr.ch_ppocr_rec.main")
    decode = rec.CTCLabelDecode(character=characters("ppocr6-rec"))
    runs = lambda x: session.run(None, {"x": x})[0]
    fields = {"rec_batch_num": 6, "rec_image_shape": [3, 48, 320]}
    reader = bare(rec.TextRecognizer, session=runs, postprocess_op=decode, **fields)
    decisions = []
    images = [line(text, i) for i, text in enumerate(LINES)]
    for begin in range(0, len(images), 6):
        batch = images[begin : begin + 6]
        ratio = max(320 / 48, *(image.shape[1] / image.shape[0] for image in batch))
        x = np.stack([reader.resize_norm_img(image, ratio) for image in batch]).astype(np.float32)
        lines, _ = decode(runs(x), False, wh_ratio_list=[1.0] * len(batch), max_wh_ratio=ratio)
        decisions += [(text, float(score)) for text, score in lines]
    return decisions


def turned(session):
    """Lines the right way up, and upside down."""
    cls = load("rapidocr-onnxruntime", "rapidocr_onnxruntime.ch_ppocr_cls.text_cls")
    reader = bare(cls.TextClassifier, cls_image_shape=[3, 48, 192])
    images = [line(text, i)[:: 1 - 2 * (i % 2), :: 1 - 2 * (i % 2)] for i, text in enumerate(LINES)]
    decisions = []
    for begin in range(0, len(images), 6):
        x = np.stack([reader.resize_norm_img(np.ascontiguousarray(image)) for image in images[begin : begin + 6]])
        scores = session.run(None, {"x": x.astype(np.float32)})[0]
        decisions += [(("0", "180")[int(row.argmax())], float(row.max())) for row in scores]
    return decisions


def lines(session):
    pages = load("trueocr", "trueocr.page")
    meta = json.loads((unpacked("trueocr") / "trueocr/models/meta.json").read_text(encoding="utf-8"))
    engine = bare(pages.PageEngine, det=session, long_side=meta["det_long_side"])
    decisions = []
    for i in range(3):
        boxes = engine.detect(gray(page(i)[0]))
        decisions.append((where(boxes[:, :4]), float(boxes[:, 4].min()) if len(boxes) else None))
    return decisions


def read(session):
    recognizer = load("trueocr", "trueocr.recognizer")
    meta = json.loads((unpacked("trueocr") / "trueocr/models/meta.json").read_text(encoding="utf-8"))
    fields = {"chars": meta["charset"], "max_width": meta.get("max_width", 768)}
    fields |= {"pad_y": meta.get("pad_y", 0.2), "pad_x": meta.get("pad_x", 0.3)}
    reader = bare(recognizer.Recognizer, session=session, **fields)
    found = reader.predict([line(text, i) for i, text in enumerate(VIETNAMESE + LINES)])
    return [(p.text, float(p.confidence)) for p in found]


def orient(session):
    pages = load("trueocr", "trueocr.page")
    decisions = []
    for i in range(2):
        for turns in range(4):
            image = np.rot90(gray(page(i)[0]), turns)
            p = session.run(None, {"x": pages.orient_input(np.ascontiguousarray(image))[None, None]})[0][0]
            decisions.append((f"{int(p.argmax())} {p.max() > pages.ORIENT_MIN}", float(p.max())))
    return decisions


def order(session):
    pages = load("trueocr", "trueocr.page")
    engine = bare(pages.PageEngine, order=session)
    decisions = []
    for i in range(3):
        image, boxes, texts = page(i)
        found = engine.reading_order(boxes, texts, (image.shape[1], image.shape[0]))
        decisions.append((" ".join(map(str, found)), None))
    return decisions
