from potstill.interchange.intervene import Swap as Swap
from potstill.interchange.intervene import counterfactual as counterfactual
from potstill.interchange.intervene import run as run
from potstill.interchange.mappings import InterchangeMapping as InterchangeMapping
from potstill.interchange.mappings import read_mappings as read_mappings
