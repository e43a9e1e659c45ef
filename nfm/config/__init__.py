"""params.yaml as frozen, typed sections; every key is stated in the file and no other is accepted.

A section has no defaults: what a stage depends on stands in params.yaml, where DVC sees it change.
"""

from nfm.config.cost import Cost
from nfm.config.coupling import (
    CouplingSection,
    Gate,
    IndependentCoupling,
    InverseRegressionCoupling,
    MinibatchOTCoupling,
    SemidiscreteOTCoupling,
    TeacherCoupling,
)
from nfm.config.data import Cifar10Data, DataSection, DigitsData, FolderData, ImagenetData, LatentsData, MnistData
from nfm.config.evaluate import INCEPTION, Evaluate, Inception
from nfm.config.networks import Features, Student, Teacher, Train
from nfm.config.params import HIDDEN, Params, load_params, parse_params, read_mapping, with_overrides
from nfm.config.promote import Guards, Promote
from nfm.config.run import Run
from nfm.config.section import Section, nearest

__all__ = [
    "HIDDEN",
    "INCEPTION",
    "Cifar10Data",
    "Cost",
    "CouplingSection",
    "DataSection",
    "DigitsData",
    "Evaluate",
    "Features",
    "FolderData",
    "Gate",
    "Guards",
    "ImagenetData",
    "Inception",
    "IndependentCoupling",
    "InverseRegressionCoupling",
    "LatentsData",
    "MinibatchOTCoupling",
    "MnistData",
    "Params",
    "Promote",
    "Run",
    "Section",
    "SemidiscreteOTCoupling",
    "Student",
    "Teacher",
    "TeacherCoupling",
    "Train",
    "load_params",
    "nearest",
    "parse_params",
    "read_mapping",
    "with_overrides",
]
