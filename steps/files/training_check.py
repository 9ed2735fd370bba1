"""Trains a tiny model with one framework for a few steps and prints what came of it as one line of JSON.

Arguments: what to train with (keras-torch, keras-tensorflow, keras-jax, torch, jax, tensorboard), and `gpu` or `cpu`.
Run by the action training-check, unprivileged, with the environment's own Python."""
import json
import math
import sys

STEPS = 40


def data(numpy):
    """A line in four dimensions, without noise: any framework that computes right learns it in a few steps."""
    inputs = numpy.random.default_rng(7).normal(size=(256, 4)).astype("float32")
    return inputs, (inputs @ numpy.array([[1.0], [-2.0], [0.5], [3.0]], dtype="float32") + 0.25).astype("float32")


def train_torch(gpu):
    import numpy
    import torch
    torch.manual_seed(7)
    device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    inputs, targets = (torch.from_numpy(part).to(device) for part in data(numpy))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(device)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.05), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    where = next(model.parameters()).device.type
    return "torch " + torch.__version__, name, where == "cuda", losses[0], losses[-1]


def train_jax(gpu):
    import jax
    import jax.numpy as jnp
    import numpy
    inputs, targets = data(numpy)
    loss = jax.jit(lambda w: jnp.mean((inputs @ w[:4] + w[4] - targets) ** 2))
    slope, weights = jax.jit(jax.grad(loss)), jnp.zeros((5, 1))
    before = float(loss(weights))
    for _ in range(STEPS):
        weights = weights - 0.1 * slope(weights)
    device = next(iter(weights.devices()))
    return "jax " + jax.__version__, device.device_kind, device.platform == "gpu", before, float(loss(weights))


def train_keras(backend, gpu):
    import os
    os.environ["KERAS_BACKEND"] = backend
    import keras
    import numpy
    keras.utils.set_random_seed(7)
    inputs, targets = data(numpy)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss="mse")
    before = float(model.evaluate(inputs, targets, verbose=0))
    model.fit(inputs, targets, epochs=5, batch_size=32, verbose=0)
    after = float(model.evaluate(inputs, targets, verbose=0))
    weight = model.trainable_variables[0].value
    if backend == "torch":
        import torch
        on_gpu = weight.device.type == "cuda"
        name, version = torch.cuda.get_device_name(0) if on_gpu else "cpu", torch.__version__
    elif backend == "tensorflow":
        import tensorflow
        gpus, version = tensorflow.config.list_physical_devices("GPU"), tensorflow.__version__
        on_gpu = "GPU" in tensorflow.matmul(inputs, tensorflow.ones((4, 1))).device
        name = tensorflow.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu") if on_gpu else "cpu"
    else:
        import jax
        device = next(iter(weight.devices()))
        on_gpu, name, version = device.platform == "gpu", device.device_kind, jax.__version__
    return f"keras {keras.__version__} with {backend} {version}", name, on_gpu, before, after


def start_tensorboard(_):
    from tensorboard import program, version
    program.TensorBoard().configure(logdir="/nonexistent")
    return "tensorboard " + version.VERSION, "cpu", False, None, None


def main():
    what, gpu = sys.argv[1], sys.argv[2] == "gpu"
    kind, _, backend = what.partition("-")
    if not gpu:
        import os
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ["JAX_PLATFORMS"] = "cpu"
    if kind == "keras":
        result = train_keras(backend, gpu)
    else:
        result = {"torch": train_torch, "jax": train_jax, "tensorboard": start_tensorboard}[kind](gpu)
    name, device, on_gpu, *losses = result
    before, after = (loss if loss is not None and math.isfinite(loss) else None for loss in losses)  # JSON has no NaN
    print(json.dumps({"framework": name, "device": device, "gpu": on_gpu, "before": before, "after": after}))


main()
