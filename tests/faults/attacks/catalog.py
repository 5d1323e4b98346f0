"""Every attack by its name, and what it is compared with."""

from .bodies import BODIES
from .connections import CONNECTIONS
from .formats import FORMATS
from .media import MEDIA
from .ordinary import ORDINARY

ATTACKS = {attack.name: attack for attack in (*ORDINARY, *FORMATS, *BODIES, *MEDIA, *CONNECTIONS)}
