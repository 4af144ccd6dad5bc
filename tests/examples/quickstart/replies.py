"""Made-up replies."""

from examples.quickstart.scoring import Reply

PIXEL = "data:image/png;base64,AAAA"


def reply(identity: str, answer: str, *, dataset: str = "digits", truth: str = "7") -> Reply:
    images = () if dataset == "text" else (f"{identity}.png",)
    return Reply(
        dataset=dataset,
        identity=identity,
        images=images,
        question="Which digit is this?",
        truth=truth,
        answer=answer,
    )


def replies(answers: str, dataset: str = "digits") -> list[Reply]:
    return [reply(f"{dataset}-{i}", answer, dataset=dataset) for i, answer in enumerate(answers)]
