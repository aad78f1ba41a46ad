from potstill.losses.distillation import FusedLinearDistillationLoss as FusedLinearDistillationLoss
from potstill.losses.distillation import fused_linear_distillation_loss as fused_linear_distillation_loss
from potstill.losses.hidden import cosine_distance as cosine_distance
from potstill.losses.hidden import hidden_mse as hidden_mse
from potstill.losses.soft_targets import kl_divergence as kl_divergence
from potstill.losses.vectors import similarity_distance as similarity_distance
from potstill.losses.vectors import vector_mse as vector_mse
from potstill.losses.vocabulary import vocabulary_losses as vocabulary_losses
