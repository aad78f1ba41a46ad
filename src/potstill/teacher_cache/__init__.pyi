from potstill.teacher_cache.formats import TopForm as TopForm
from potstill.teacher_cache.store import OutputStore as OutputStore
from potstill.teacher_cache.store import build_outputs as build_outputs
