"""Lightning: pip install lightning. `SNOpt(self)`, and the averages for validation."""

import lightning
import torch
from problem import make_batches, make_model
from torch.nn.functional import cross_entropy

from snopt import SNOpt


class Classifier(lightning.LightningModule):
    """A model and its loss."""

    def __init__(self):
        super().__init__()
        self.model = make_model()
        self.losses = []

    def training_step(self, batch, index):
        """The loss of a batch."""
        x, y = batch
        loss = cross_entropy(self.model(x), y)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, index):
        """The loss of a batch, with the averages in the model."""
        self.log("valid", cross_entropy(self.model(batch[0]), batch[1]))

    def on_validation_start(self):
        """The averages are in the model for validation."""
        self.optimizers(use_pl_optimizer=False).eval()

    def on_validation_epoch_end(self):
        """The weights are back before callbacks save a checkpoint."""
        self.optimizers(use_pl_optimizer=False).train()

    def configure_optimizers(self):
        """The optimizer."""
        return SNOpt(self)


x, y = (torch.cat(parts) for parts in zip(*make_batches(), strict=True))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
module = Classifier()
trainer = lightning.Trainer(
    max_epochs=1, accelerator="cpu", devices=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, loader, loader)
losses = module.losses
