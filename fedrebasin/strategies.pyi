from strategies import *
from strategies import flower as flower
