# Written by gpu-bootstrap: the default CUDA toolkit for login shells.
# Sourcing it twice adds nothing, and no empty element (the current directory) is ever left in a path.
case ":${PATH}:" in
    *:/usr/local/cuda/bin:*) ;;
    *) PATH="/usr/local/cuda/bin${PATH:+:${PATH}}" ;;
esac
case ":${LD_LIBRARY_PATH:-}:" in
    *:/usr/local/cuda/lib64:*) ;;
    *) LD_LIBRARY_PATH="/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:${LD_LIBRARY_PATH}}" ;;
esac
export PATH LD_LIBRARY_PATH
