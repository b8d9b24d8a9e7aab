"""Labels: what should be in a picture, read from YOLO, COCO and mask files."""
