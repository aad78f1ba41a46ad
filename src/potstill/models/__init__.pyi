from potstill.models.backbone import Backbone as Backbone
from potstill.models.backbone import backbone_of as backbone_of
from potstill.models.students import student_from_config as student_from_config
from potstill.models.students import student_from_layers as student_from_layers
