from simulations import *
