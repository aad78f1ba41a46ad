from potstill.teacher_cache.formats import TopFormat as TopFormat
from potstill.teacher_cache.hidden import HiddenFormat as HiddenFormat
from potstill.teacher_cache.store import OutputStore as OutputStore
from potstill.teacher_cache.store import build_outputs as build_outputs
