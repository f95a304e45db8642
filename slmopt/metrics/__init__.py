"""Metrics: what a model's predictions of a text are worth. A metric is a small class; plugins add theirs by a hook."""

from __future__ import annotations

from slmopt.metrics.metric import Document, Metric, Prediction, Subject
from slmopt.metrics.subject import CompiledSubject, ModuleSubject, read_documents

__all__ = ["CompiledSubject", "Document", "Metric", "ModuleSubject", "Prediction", "Subject", "read_documents"]
