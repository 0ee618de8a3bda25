"""Define the sections of run.json on analysis, task scores, size and speed, and generated text."""

from inheritune.run_record.fields import (
    ByName,
    Flag,
    Maybe,
    Number,
    Numbers,
    Part,
    Rows,
    Text,
    Texts,
    Values,
    flag,
    items,
    key,
    mapping,
    part,
)


class LayerAttentionRecord(Part):
    """Attention of one layer."""

    layer: Number = key("index from the input, from 0")
    rank: Numbers = items("attention rank of each head, mean over sequences")
    max_rank: Number = key("rank of the fullest head")
    avg_mass: Number = key("attention mass, mean over heads")
    sink_share: Number = key("attention that falls on the first token, in [0, 1]")
    heads_near_one: Number = key("share of heads below rank 1.5, in [0, 1]")
    lazy: Flag = flag("all heads have rank 1 on every sequence")


class LayerImportanceRecord(Part):
    """Importance of one layer."""

    layer: Number = key("index from the input, from 0")
    influence: Number = key("1 - cosine of the layer's input and output")
    removal_loss: Number = key("rise of the loss when the layer is skipped, nats per token")


class AttentionLayers(Part):
    """Attention, layer by layer."""

    layers: Rows[LayerAttentionRecord] = items("one row per layer")


class ImportanceLayers(Part):
    """Importance, layer by layer."""

    layers: Rows[LayerImportanceRecord] = items("one row per layer")


class AnalysedModel(Part):
    """One model of the analysis."""

    role: Text = key("`reference`, `target` or `model`")
    name: Text = key("its name")
    attention: AttentionLayers = part(AttentionLayers, "attention, layer by layer")
    importance: ImportanceLayers = part(ImportanceLayers, "importance, layer by layer")


class SequencesRecord(Part):
    """The sequences that were analysed."""

    sequences: Number = key("number of sequences")
    tokens_per_sequence: Number = key("their length")
    bos: Flag = flag("each begins with BOS")


class Level(Part):
    """Rank and mass of an attention pattern of known form."""

    rank: Number = key("attention rank")
    mass: Number = key("attention mass")


class AdviceRecord(Part):
    """Number of layers to begin with."""

    paper: Number = key("by the papers' rule")
    advice: Number = key("by the analysis")
    reason: Text = key("why")


class AnalysisRecord(Part):
    """Attention and importance of layers, where the recipe asks for them."""

    threshold: Number = key("share of squared singular values that a rank holds, in (0, 1]")
    sequences: SequencesRecord = part(SequencesRecord, "the sequences that were analysed")
    calibration: ByName[Level] = mapping("rank and mass of attention patterns of known form")
    models: Rows[AnalysedModel] = items("the reference and the target")
    advice: AdviceRecord = part(AdviceRecord, "layers to begin with")


class LayerScoreRecord(Part):
    """Scores of one layer of the reference on calibration text."""

    layer: Number = key("position from the input, from 0")
    kl: Number = key("KL(reference || reference without the layer), nats per token")
    loss: Number = key("rise of the loss without the layer, nats per token")
    influence: Number = key("1 - cosine of the layer's input and output")
    norm_ratio: Number = key("norm of the layer's output over that of its input")


class BlockScoreRecord(Part):
    """Scores of one block of layers of the reference on calibration text."""

    start: Number = key("its first layer, from 0")
    length: Number = key("number of layers")
    angle: Number = key("angle between its input and output, over pi")
    kl: Number = key("KL(reference || reference without it), nats per token, where measured")


class InheritedRecord(Part):
    """The layers that one model inherited, and what the cut costs before any training."""

    name: Text = key("name of the variant")
    select: Text = key("the selection, as in the recipe")
    layers: Number = key("number of layers")
    kept: Numbers = items("the reference's layers that it has")
    kl: Number = key("KL(reference || cut) on the calibration text, nats per token")
    loss: Number = key("rise of the loss on the calibration text, nats per token")
    start_val_loss: Number = key("val_loss before the first step, nats per token")
    val_loss: Number = key("val_loss after training, nats per token")


class SelectionRecord(Part):
    """Scores by which layers were chosen; selection.json holds those of every cut."""

    text: SequencesRecord = part(SequencesRecord, "the windows of training text they are of")
    loss: Number = key("the reference's loss on them, nats per token")
    layers: Rows[LayerScoreRecord] = items("each layer of the reference")
    blocks: Rows[BlockScoreRecord] = items("blocks of neighbouring layers, of up to 24")
    inherited: Rows[InheritedRecord] = items("each model that inherits layers")
    seconds: Number = key("wall-clock time of all scores")


class PatchedSizeRecord(Part):
    """A size that layers of the reference, put back untrained, give to a round's target."""

    trained_layers: Number = key("layers of the round's target, which were trained")
    layers: Number = key("number of layers")
    returned: Numbers = items("the reference's layers that came back; none: the target itself")
    params: Number = key("parameters; tied weights count once")
    val_loss: Number = key("nats per token")
    val_loss_se: Number = key("standard error over windows")
    difference: Number = key("val_loss minus the reference loss, paired by window")
    difference_se: Number = key("standard error of the difference")
    kl: Number = key("KL(reference || size), nats per validation token, where measured")


class CandidateRecord(Part):
    """One candidate of a stage, in the order of the stage's result."""

    select: Text = key("the way, or the list of layers")
    kept: Numbers = items("the reference's layers that it has")
    kl: Number = key("KL(reference || candidate) on the held-out windows, where it decides")
    val_loss: Number = key("loss on held-out windows of the training text; null: it diverged")
    tokens: Number = key("training tokens")
    flops: Number = key("FLOPs of training and measuring, and of the repair in the first stage")
    seconds: Number = key("wall-clock seconds")
    processes: Number = key("processes that shared the work")
    goes_on: Flag = flag("it goes on to the next stage, or has won")


class TournamentStage(Part):
    """One stage of a tournament."""

    tokens: Number = key("training tokens of each candidate")
    candidates: Rows[CandidateRecord] = items("the candidates, the best first")


class TournamentRecord(Part):
    """Short trainings by which layers were chosen; the validation text has no part in them."""

    by: Text = key("what was compared: `kl` or `val_loss`")
    windows: Number = key("windows of the training text that no candidate was trained on")
    stages: Rows[TournamentStage] = items("the stages, in order")
    winner: Text = key("the way, or the list of layers, that won")
    kept: Numbers = items("the reference's layers that the winner has")


class MetricRecord(Part):
    """One metric of a task."""

    value: Number = key("the score")
    se: Number = key("its standard error")
    lower: Flag = flag("lower is better")


class ScoreRecord(Part):
    """The answers of one model to one task."""

    task: Text = key("name of the task in lm-eval")
    shots: Number = key("examples in the prompt")
    metrics: ByName[MetricRecord] = mapping("metrics by name")
    key: Values = mapping("everything that the score depends on")
    facts: Values = mapping("device, BOS in training and in the questions, length of the model")


class EvaluatedModelRecord(Part):
    """The scores of one model."""

    name: Text = key("name of the variant, or `reference`")
    model: Text = key("`evaluate` only: the model as it was named")
    role: Text = key("`reference`, `target` or `control`")
    layers: Number = key("number of layers")
    params: Number = key("`evaluate` only: parameters; tied weights count once")
    made: Text = key("`evaluate` only: `whole`, `cut`, `repaired`, `grown` or `trained`")
    tokens: Number = key("training tokens")
    scores: Rows[ScoreRecord] = items("one row per task")

    def score(self, task: str) -> ScoreRecord:
        """The model's answers to a task; empty where there are none."""
        return next((score for score in self.scores if score.task == task), ScoreRecord())


class Failure(Part):
    """A task that could not be answered."""

    model: Text = key("name of the model")
    task: Text = key("name of the task")
    message: Text = key("why")


class EvaluationRecord(Part):
    """Task scores, where the recipe asks for tasks."""

    lm_eval_version: Text = key("version of lm-eval")
    tasks: Texts = items("tasks and suites that the recipe names")
    models: Rows[EvaluatedModelRecord] = items("scores of the trained models")
    at: Rows[EvaluatedModelRecord] = items("scores of snapshots in mid-training")
    failures: Rows[Failure] = items("tasks that failed")


class SpreadRecord(Part):
    """Repeated measurements."""

    median: Number = key("their median")
    low: Number = key("the lowest")
    high: Number = key("the highest")

    def __str__(self) -> str:
        return f"{self.median:g} ({self.low:g} to {self.high:g})" if self else ""


class FidelityRecord(Part):
    """How close a model's predictions q are to the reference's p, on all validation windows."""

    kl: Number = key("KL(p || q), nats per token")
    kl_se: Number = key("its standard error over windows")
    top1: Number = key("share of tokens at which both think the same token the likeliest")
    top1_se: Number = key("its standard error over windows")
    overlap: Number = key("sum of min(p, q), in [0, 1]")
    overlap_se: Number = key("its standard error over windows")
    windows: Number = key("number of windows")
    tokens: Number = key("predicted tokens")


class SpeedRecord(Part):
    """Size and speed of one model."""

    name: Text = key("its name")
    layers: Number = key("number of layers")
    params: Number = key("parameters; tied weights count once")
    disk_bytes: Number = key("size of the weight files")
    peak_bytes: Number = key("most memory of its tensors at once while it generates")
    cache_bytes_per_token: Number = key("what each further token adds to the cache")
    prefill: SpreadRecord = part(SpreadRecord, "tokens of the prompt per second, in one forward")
    decode: SpreadRecord = part(SpreadRecord, "new tokens per second after the first")
    first_token: SpreadRecord = part(SpreadRecord, "seconds to the first new token")
    fidelity: Maybe[FidelityRecord] = key("how close its predictions are to the first model's")


class GainsRecord(Part):
    """What the target gains and loses against its reference, where the recipe asks for it."""

    device: Text = key("processor or GPU")
    dtype: Text = key("dtype of weights and cache while speed and memory were measured")
    prompt_tokens: Number = key("length of the prompts")
    new_tokens: Number = key("tokens that were generated after each prompt")
    repeats: Number = key("prompts, each given to every model in turn")
    models: Rows[SpeedRecord] = items("the reference and the target")


class Sample(Part):
    """Text that a model generated."""

    model: Text = key("name of the variant, `reference` or `target`")
    prompt: Text = key("the beginning, from the recipe")
    text: Text = key("what the model wrote after it")
