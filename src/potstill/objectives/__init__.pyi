from potstill.objectives.matches import Matches as Matches
from potstill.objectives.matching import Match as Match
from potstill.objectives.matching import read_matches as read_matches
