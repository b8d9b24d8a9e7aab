"""Ground-truth labels from YOLO, COCO and mask files."""
