"""Where cri.py and containers.py meet."""
IMAGE = "example.com/pause:1"
SOCKET = "/srv/cri.sock"  # on disk: in another mount namespace /run is another one
LOGS = "/srv/logs"
