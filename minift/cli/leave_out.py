"""evaluate --leave-one-cluster-out: tune on all clusters of tasks but one, assess on that one, for each in turn."""

from pathlib import Path

from minift.cli.folders import check_writable, command
from minift.cli.models import open_kind, pick_device
from minift.cli.rows import find_files, read_rows
from minift.cli.sampling import room_to_answer
from minift.core.heads import LanguageModel
from minift.errors import MiniftError
from minift.evaluation.clusters import leave_one_cluster_out
from minift.studies import cluster_study
from minift.text.chat import check_messages, encode_prompt

# Chats about the world, where there is no --data: 24 of each of its tasks.
N_ROWS = 36 * 24


def leave_out(options):
    """Run all folds for the given seeds and numbers of clusters; write a table, results.json and a chart to --out.

    Each finished fold is saved; the same command goes on with those that are left.
    """
    if not options.out or Path(options.out).is_file():
        raise MiniftError("--leave-one-cluster-out needs --out with the name of a folder, in which it keeps its folds")
    device = pick_device(options.device)

    def open_base():
        model, tokenizer = open_kind(options.model, LanguageModel, "--leave-one-cluster-out")
        return model.to(device), tokenizer

    rows = read_chats(options.data, *open_base()) if options.data else None
    numbers = numbers_of_clusters(options.clusters, rows or cluster_study.world_chats(N_ROWS, 0))
    check_writable(Path(options.out) / "results.json.try")
    settings = {"steps": options.steps, "lr": options.lr, "batch_size": cluster_study.BATCH_SIZE}
    results = cluster_study.run(
        options.out, open_base, lambda seed: rows or cluster_study.world_chats(N_ROWS, seed),
        numbers=numbers, seeds=options.seeds, settings=settings, command=command(options.argv))
    cluster_study.print_tables(results)
    print(f"\nAll numbers are in {Path(options.out) / 'results.json'}, the chart beside it.")


def read_chats(patterns, model, tokenizer):
    """The user's rows {"messages": [user, assistant], "task", "cluster"}; MiniftError for one that is no such row."""
    rows = read_rows(find_files(patterns), ("messages",))
    for row in rows:
        check_messages(row.values["messages"], row.where, need_assistant=True)
        roles = [message["role"] for message in row.values["messages"]]
        if roles != ["user", "assistant"]:
            raise MiniftError(
                f"{row.where}: expected one user turn and one assistant turn, got {', '.join(roles)}; "
                "leaving a cluster out judges single answers")
        missing = [name for name in ("task", "cluster") if not row.values.get(name)]
        if missing:
            raise MiniftError(
                f"{row.where}: the key {missing[0]!r} is missing; it says what must not be tuned on when "
                "its cluster is assessed")
        room_to_answer(model, encode_prompt(tokenizer, row.values["messages"][:1]), None, row.where)
    return [row.values for row in rows]


def numbers_of_clusters(wanted, rows):
    """0 (the base itself) and the wanted numbers; a number that takes in all clusters becomes "all"."""
    most = len(leave_one_cluster_out(rows)) - 1
    numbers = ["all" if n == "all" or n >= most else n for n in wanted]
    return [0, *dict.fromkeys(numbers)]
