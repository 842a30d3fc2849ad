"""A finished run as a service over HTTP; `deploy.serve` is its command.

app          what a run's task can do, as routes
forms        what clients may send: the models that validate requests and describe them
description  the OpenAPI document, made of these
records      a record as JSON or as an upload -> what a task's `preprocess` takes
batching     examples of many requests together, by the one thread that owns the device
answering    predictions, embeddings and transcriptions
attributions what spoke for predictions of images and texts
texts        tokens that come one by one -> the text that is certain
generation   the streams of tokens of an engine
scoring      how probable the tokens of prompts are
completions  those as completions and chats
choices      what an answer has of each, in the OpenAI API's shape
chats        messages of a chat -> the tokens that the model goes on from
limits       who may ask, how much, how many at once and for how long
telemetry    request ids, logs, metrics, and every failure as an answer
failures     what goes wrong, as the OpenAI API says it
page         the web page at /
connections  uvicorn, from its port to its end

A handler raises `errors.UserError` or `failures.Failure`, which `telemetry` answers; what else is
raised is a fault of ours, answered by 500 and logged. Nothing that a client sends may get there.
"""
