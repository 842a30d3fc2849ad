"""Tasks: what a model is trained for, by the name that `config.task.name` gives.

A task is a frozen dataclass that holds the model and says what its batches mean. The loop, the
evaluation and the server know nothing else about it. Its methods are pure:

    fit(source) -> task               with what preprocessing learns from training records
    save(directory); restored(directory) -> task        what `fit` learnt, as plain files
    examples(source, cache_dir, train) -> sequence       of dicts of equally shaped arrays
    init(rng, batch) -> variables
    loss_fn(params, model_state, batch, rng, train) -> (loss, (metrics, model_state))
    predict(params, model_state, batch) -> predictions
    preprocess(raw) -> example; postprocess(prediction) -> answer
    summary(metrics) -> metrics       host figures that follow from means, such as perplexity
    items(batch shape) -> (count, unit), flops_per_step(params, batch shape) -> float | None
    demonstrate(params, model_state) -> {file name: text}
    facts() -> {name: text}           what the start screen says of the model

A task may also have `example_shapes() -> {name: shape}`, of one example, where they are known
without its data: a config is then explained without opening any. One with `record_fields -> {name:
kind}`, what `preprocess` needs of a record, answers raw input: see `data.inputs`; of recordings it
also says the `sample_rate`, and with `any_size` it takes images as they are, which are else scaled
and cropped to the size of training, as frames of videos are; `answer_fields` names those of its
fields that may have another value when it answers. One that embeds texts has `text_example(token
ids) -> example` and `embed_texts(params, model_state, batch of these) -> [B, E]`. One with
`compares_examples`, whose loss of an example depends on the others of its batch, is trained on
whole batches only: its gradient is neither accumulated nor that of each device's part; an
evaluation's loss is then of batches of that size. One with `compares_with_base` needs
`config.adapter`: its loss compares the params with those of the frozen base, `adapters.without`.
One whose loss counts something else than the batch's weights says by `most_counts(weights)` how
many of it an example has at most, by which the loss of one alone is divided.
One whose loss is of logits, a row for each of the batch's `weights`, and calls its model once for
them, may learn from a teacher, see `compress.distill`: `alike_in_teacher` names those of its fields
that the teacher's task must have alike. One that goes on with texts, as `predict` and `deploy` ask
it to, has `prompt(text)`, the ids that its model is to continue for a user's text, and `end`, the
id that ends what it says, or None. Of one with a `vocabulary` the command that shows batches
decodes 'inputs' and 'targets', or what its `token_fields` names.

Figures that are no means of examples, such as an area under a curve or BLEU, are scores:

    outcomes(params, model_state, batch) -> {name: array [B, ...]}      on the devices
    scores({name: array [examples, ...]}) -> {name: float}              on the host, of a whole set
    score_names       what `scores` returns
    pictures({name: array [examples, ...]}) -> {name: figure}           likewise, for --pictures

`metrics` maps names to (sum, count) pairs; 'loss' is one of them, and the returned loss is its
mean. To add a task, put it in a file of its own and its class here.
"""

from bigmodels.tasks.chat import Chat
from bigmodels.tasks.classification import Classification
from bigmodels.tasks.detection import Detection
from bigmodels.tasks.diffusion import Diffusion
from bigmodels.tasks.forecasting import Forecasting
from bigmodels.tasks.group_policy import GroupPolicy
from bigmodels.tasks.image_text import ImageText
from bigmodels.tasks.language_modeling import LanguageModeling
from bigmodels.tasks.masked_language_modeling import MaskedLanguageModeling
from bigmodels.tasks.multi_label import MultiLabel
from bigmodels.tasks.next_item import NextItem
from bigmodels.tasks.node_classification import NodeClassification
from bigmodels.tasks.preference import Preference
from bigmodels.tasks.ranking import Ranking
from bigmodels.tasks.retrieval import Retrieval
from bigmodels.tasks.segmentation import Segmentation
from bigmodels.tasks.sound_classification import SoundClassification
from bigmodels.tasks.sound_generation import SoundGeneration
from bigmodels.tasks.span_extraction import SpanExtraction
from bigmodels.tasks.sparse_coding import SparseCoding
from bigmodels.tasks.speech_to_text import SpeechToText
from bigmodels.tasks.tables import TableClassification, TableRegression
from bigmodels.tasks.text_classification import TextClassification
from bigmodels.tasks.text_to_text import TextToText
from bigmodels.tasks.transcription import Transcription
from bigmodels.tasks.visual_questions import VisualQuestions

TASKS = {
    'chat': Chat,
    'classification': Classification,
    'detection': Detection,
    'diffusion': Diffusion,
    'forecasting': Forecasting,
    'group_policy': GroupPolicy,
    'image_text': ImageText,
    'language_modeling': LanguageModeling,
    'masked_language_modeling': MaskedLanguageModeling,
    'multi_label': MultiLabel,
    'next_item': NextItem,
    'node_classification': NodeClassification,
    'preference': Preference,
    'ranking': Ranking,
    'retrieval': Retrieval,
    'segmentation': Segmentation,
    'sound_classification': SoundClassification,
    'sound_generation': SoundGeneration,
    'span_extraction': SpanExtraction,
    'sparse_coding': SparseCoding,
    'speech_to_text': SpeechToText,
    'table_classification': TableClassification,
    'table_regression': TableRegression,
    'text_classification': TextClassification,
    'text_to_text': TextToText,
    'transcription': Transcription,
    'visual_questions': VisualQuestions,
}
