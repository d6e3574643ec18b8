"""Huey's consumer with greenlets: gevent has to come first, as Huey's documentation says."""

from gevent import monkey

monkey.patch_all()

from huey.bin.huey_consumer import consumer_main  # noqa: E402

if __name__ == "__main__":
    consumer_main()
