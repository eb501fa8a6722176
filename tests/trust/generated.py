"""How hypothesis makes up inputs here: so many, always the same ones, however long each takes."""

from hypothesis import HealthCheck, settings


def examples(count: int, **options: object) -> settings:
    """Settings for so many examples; options are those of `settings` beside."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
