"""Characters of a text, drawn again from all characters alike (Hoogeboom et al. 2021, arXiv:2102.05379)."""

from scoresde.configs.default import ConfigDict
from scoresde.configs.text_absorbing import get_config as absorbing


def get_config() -> ConfigDict:
    config = absorbing()
    config.process = "uniform(schedule=cosine(power=1))"
    config.model.predicts = "x0_loo_logits"
    config.model.time = True
    config.training.loss = "score_entropy"
    return config
