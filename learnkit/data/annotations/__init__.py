"""Annotations of every kind: classes, masks, anomalies, boxes, in COCO's and HALCON's forms."""
