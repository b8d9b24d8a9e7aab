"""Hand an explanation over to other tools: COCO's, Label Studio's, matplotlib, supervision; and take Ultralytics' in.

python examples/integrations.py                                          a drawn scene, the demo model of YOLO
python examples/integrations.py street.jpg yolov8n.pt                    your photo, your weights
"""

import json
import sys
from pathlib import Path

from PIL import Image

import detcam
from detcam.images import read_image
from detcam.integrations import HeatAnnotator
from detcam.scenes import HELD_OUT_SEED, draw_scene


def main(out: Path, image: object, model: str) -> None:
    out.mkdir(exist_ok=True)
    e = detcam.Explainer(model)(image)
    print(f"{len(e)} objects: {', '.join(e.labels)}")
    e.to_pil().save(out / "boxes.png")
    e.to_matplotlib().savefig(out / "figure.png")  # needs matplotlib
    (out / "coco.json").write_text(json.dumps(e.to_coco(image_id=1)))  # needs pycocotools
    (out / "label-studio.json").write_text(json.dumps([e.to_label_studio("photo.jpg")]))
    try:
        import supervision as sv
    except ImportError:
        print("no supervision.png: pip install supervision")
    else:
        detections = e.to_supervision()
        scene = HeatAnnotator().annotate(Image.fromarray(e.image), detections[detections.confidence > 0.5])
        sv.RoundBoxAnnotator().annotate(scene, detections).save(out / "supervision.png")
    # The other way round: what Ultralytics' own predict returned, explained box by box.
    from ultralytics import YOLO

    yolo = detcam.zoo.load(model) if model in detcam.zoo.names() else YOLO(model)
    (result,) = yolo.predict(e.image[:, :, ::-1], conf=0.5, verbose=False)  # predict takes arrays as BGR
    explained = detcam.explain_results(result, yolo)
    explained.to_pil(0).save(out / "first.png") if len(explained) else print("predict found nothing")
    print(f"pictures and files in {out}")


if __name__ == "__main__":
    given = sys.argv[1:]
    picture = read_image(given[0]) if given else draw_scene(HELD_OUT_SEED + 4).image
    main(Path("example-integrations"), picture, given[1] if len(given) > 1 else "scenes-yolo")
