"""What pyproject.toml cannot say: the recipes at the root of the repository are installed inside the package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["compressor", "compressor.*"]), "compressor.recipes"],
    package_dir={"compressor.recipes": "recipes"},
)
