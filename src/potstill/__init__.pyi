from potstill.cli.api import EvaluationResult as EvaluationResult
from potstill.cli.api import TrainingResult as TrainingResult
from potstill.cli.api import evaluate as evaluate
from potstill.cli.api import train as train
from potstill.errors import PotstillError as PotstillError
from potstill.interchange.mappings import read_mappings as read_mappings
from potstill.losses.distillation import FusedLinearDistillationLoss as FusedLinearDistillationLoss
from potstill.losses.distillation import fused_linear_distillation_loss as fused_linear_distillation_loss
from potstill.models.backbone import backbone_of as backbone_of
from potstill.models.students import student_from_layers as student_from_layers
from potstill.objectives.matching import read_matches as read_matches

__version__: str
