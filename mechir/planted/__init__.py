"""Cross-encoders compiled by hand, whose circuit is known: a method must find it, and nothing else."""

from mechir.planted.known import Truth as Truth
from mechir.planted.known import bm25_scores as bm25_scores
from mechir.planted.known import graded as graded
from mechir.planted.known import pairs as pairs
from mechir.planted.known import truth as truth
from mechir.planted.model import PlantedEncoder as PlantedEncoder
from mechir.planted.model import bm25 as bm25
