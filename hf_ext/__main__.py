"""`python -m hf_ext` is `hf-ext`."""

from hf_ext.cli.main import main


if __name__ == "__main__":
    main()
