# The public names, for `lazy_loader`, type checkers and editors.
from . import data as data
from . import distributed as distributed
from . import errors as errors
from . import models as models
from . import networks as networks
from . import plotting as plotting
from . import schedulers as schedulers
from . import simulation as simulation
from . import training as training
from . import units as units
from .errors import CheckpointError as CheckpointError
from .errors import CutError as CutError
from .errors import DataError as DataError
from .errors import InfeasibleError as InfeasibleError
from .errors import PSLError as PSLError
from .errors import ScenarioError as ScenarioError
from .models import Cut as Cut
from .models import SplitModel as SplitModel
from .models import cuts as cuts
from .models import measure as measure
from .models import partition as partition
from .models import profile as profile
from .models import split as split
from .models import verify as verify
from .networks import EdgeCluster as EdgeCluster
from .networks import EdgeNetwork as EdgeNetwork
from .networks import WirelessCell as WirelessCell
from .plans import Plan as Plan
from .profiles import Profile as Profile
from .simulation import Timeline as Timeline
from .simulation import simulate as simulate
from .studies import run_study as run_study
from .training import History as History
from .training import Participation as Participation
from .training import train as train

__version__: str
