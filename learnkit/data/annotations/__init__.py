"""Annotations of every kind, as HALCON's datasets hold them: classes, masks, anomalies, boxes."""
