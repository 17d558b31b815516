"""Log to TensorBoard: pip install tensorboard, then tensorboard --logdir LOGS."""

import tempfile

from problem import make_batches, make_model
from torch.nn.functional import cross_entropy
from torch.utils.tensorboard import SummaryWriter

from snopt import SNOpt

model = make_model()
optimizer = SNOpt(model)
losses = []
with SummaryWriter(tempfile.mkdtemp()) as writer:
    for step, (x, y) in enumerate(make_batches()):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        writer.add_scalar("loss", losses[-1], step)
        for name, value in optimizer.diagnostics().items():
            writer.add_scalar(f"optimizer/{name}", value, step)
