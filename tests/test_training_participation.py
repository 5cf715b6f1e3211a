"""Stragglers and dropouts: who is averaged, how long a round takes, and that nobody else loses anything."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from psl.errors import CheckpointError, ScenarioError
from psl.models import thin_resnet
from psl.training import History, Participation, train
from psl.training.config import TrainingConfig
from psl.training.frameworks import FRAMEWORKS, build_framework
from psl.training.model_preparation import image_layout
from psl.training.participation import Attendance
from psl.training.sampling import Sampler, Samples
from training_plans import StandInPlanOfDevices, cut_names

UNEVEN = [range(10), range(10, 60), range(60, 100)]
SHARES = np.array([0.1, 0.5, 0.4])


@pytest.fixture
def model():
    torch.manual_seed(2)
    return thin_resnet(n_classes=4, width=4)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def run(data, model, framework="fedavg", **options):
    options = {
        "n_clients": 3, "rounds": 4, "batch_size": 8, "local_steps": 3, "partition": UNEVEN, "progress": False,
        "optimizer": momentum, "cut": [2, 7, 12] if framework == "edgesplit" else None, "seed": 4,
    } | options  # fmt: skip
    return train(framework, model, data, **options)


def plan_of(model, scheduler, device_times, method="exact"):
    """A plan that knows the devices' times and decides nothing."""
    longest = max(device_times)
    return StandInPlanOfDevices(
        scheduler, cut_names(model), lambda name, local_steps: longest, method=method, device_times=device_times
    )


def state(history):
    return history.models[0].state_dict()


def assert_same_model(a, b):
    for (name, x), y in zip(state(a).items(), state(b).values(), strict=True):
        assert torch.equal(x, y), name


# --- what happens in a round ---


@pytest.mark.parametrize("framework", ["fedavg", "edgesplit"])
def test_if_nothing_goes_wrong_nothing_changes(framework, data, model):
    plan = plan_of(model, framework, [0.1, 0.7, 0.3])
    want = run(data, model, framework, plan=plan)
    found = run(data, model, framework, plan=plan, participation=Participation())
    for name in ("simulated_time_s", "train_loss", "test_accuracy", "uplink_bits", "downlink_bits", "client_accuracy"):
        assert np.array_equal(getattr(found, name), getattr(want, name)), name
    assert_same_model(found, want)
    assert want.participants is None
    assert found.participants.tolist() == [3] * 4


def federated_by_hand(data, model, participation, rounds, steps, seed):
    """FedAvg with one model and optimizer per device, attendance as drawn, in plain torch."""
    layout = image_layout(model, torch.device("cpu"))
    average = copy.deepcopy(model).to(memory_format=layout).train()
    devices = [copy.deepcopy(average) for _ in UNEVEN]
    optimizers = [momentum(list(device.parameters())) for device in devices]
    samples = Samples(data[0], layout=layout)
    samplers = [Sampler(np.array(share), 8, seed, i) for i, share in enumerate(UNEVEN)]
    losses, counts, moves = [], [], [0, 0, 0]
    for r in range(rounds):
        here = participation.attendance(r, seed, 3, steps)
        loss, mean = 0.0, None
        for i, (device, optimizer) in enumerate(zip(devices, optimizers, strict=True)):
            device.load_state_dict(average.state_dict())
            for k in range(here.steps[i]):
                x, y = samples.fetch(samplers[i].batch(r * steps + k))
                optimizer.zero_grad()
                value = nn.functional.cross_entropy(device(x), y)
                value.backward()
                optimizer.step()
                moves[i] += 1
                if here.counted[i]:
                    loss += SHARES[i] / SHARES[here.counted].sum() * float(value.detach()) / steps
        counted = np.flatnonzero(here.counted)
        if len(counted):
            weights = SHARES[counted] / SHARES[counted].sum()
            mean = {}
            for name, tensor in devices[counted[0]].state_dict().items():
                parts = [devices[i].state_dict()[name] for i in counted]
                mean[name] = (
                    sum(w * p for w, p in zip(weights, parts, strict=True)) if tensor.is_floating_point() else tensor
                )
            average.load_state_dict(mean)
        losses.append(loss if len(counted) else float("nan"))
        counts.append(len(counted))
    return average, losses, counts, moves


@pytest.mark.parametrize("framework", ["fedavg", "edgesplit"])
def test_late_and_lost_devices_against_a_loop_by_hand(framework, data, model):
    """With momentum: the optimizer of a device whose model is not used has moved all the same."""
    participation = Participation([1.0, 2.0, 3.0], deadline=3.0, slowdown=0.5, dropout=0.3)
    average, losses, counts, moves = federated_by_hand(data, model, participation, 8, 3, seed=4)
    assert len(set(counts)) > 2, f"an example that shows little: {counts}, {moves}"
    found = run(data, model, framework, rounds=8, participation=participation)
    np.testing.assert_allclose(found.train_loss, losses, rtol=1e-4)
    assert found.participants.tolist() == counts
    for (name, x), y in zip(state(found).items(), average.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("framework", ["fedavg", "edgesplit"])
def test_a_device_that_is_always_late_leaves_the_others_as_if_it_did_not_exist(framework, data, model):
    late = Participation([1.0, 2.0, 9.0], deadline=2.5)
    found = run(data, model, framework, participation=late)
    cut = [2, 7] if framework == "edgesplit" else None
    alone = run(data, model, framework, n_clients=2, partition=UNEVEN[:2], cut=cut)
    np.testing.assert_allclose(found.train_loss, alone.train_loss, rtol=1e-5)
    for (name, x), y in zip(state(found).items(), state(alone).values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert found.participants.tolist() == [2] * 4
    assert found.simulated_time_s.tolist() == [2.5, 5.0, 7.5, 10.0]
    assert int(state(found)["bn.num_batches_tracked"]) == 12


@pytest.mark.parametrize("framework", ["fedavg", "edgesplit"])
@pytest.mark.parametrize(
    ("participation", "seconds"),
    [(Participation([1, 2, 3], deadline=0.5), 0.5), (Participation([1, 2, 3], deadline=9, dropout=1), 9.0)],
)
def test_a_round_in_which_nobody_finishes_leaves_the_model(participation, seconds, framework, data, model):
    found = run(data, model, framework, participation=participation)  # no warning either
    for name, tensor in state(found).items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert np.isnan(found.train_loss).all()
    assert found.participants.tolist() == [0] * 4
    assert found.simulated_time_s.tolist() == (seconds * np.arange(1, 5)).tolist()
    assert np.ptp(found.test_accuracy) == 0


def test_divergence_is_still_reported(data, model):
    with pytest.warns(RuntimeWarning, match="train loss is nan in round"):
        run(data, model, participation=Participation(dropout=0.2), loss=lambda o, y: o.sum(1) * float("nan"))


def test_bits_of_late_and_lost_devices(data, model):
    whole = run(data, model, rounds=1)
    late = run(data, model, rounds=1, participation=Participation([1, 2, 3], deadline=2))
    assert (late.uplink_bits[0], late.downlink_bits[0]) == (whole.uplink_bits[0], whole.downlink_bits[0])
    lost = run(data, model, rounds=1, participation=Participation(dropout=1))
    assert (lost.uplink_bits[0], lost.downlink_bits[0]) == (0, whole.downlink_bits[0])
    split = run(data, model, "edgesplit", rounds=3, participation=Participation(dropout=1))
    steps = sum(Participation(dropout=1).attendance(r, 4, 3, 3).steps for r in range(3))
    one_step = [8 * (32 * 256 + 64), 8 * (32 * 8 * 16 + 64), 0]  # cuts 2, 7 and the output
    assert split.uplink_bits[-1] == steps @ one_step


# --- attendance ---


def test_attendance_depends_on_seed_and_round_alone():
    one = Participation(np.ones(50), slowdown=0.5, dropout=0.3)
    a, b = one.attendance(7, 3, 50, 10), one.attendance(7, 3, 50, 10)
    assert np.array_equal(a.steps, b.steps)
    assert a.seconds == b.seconds
    assert not np.array_equal(a.steps, one.attendance(8, 3, 50, 10).steps)
    assert not np.array_equal(a.steps, one.attendance(7, 4, 50, 10).steps)
    patient = Participation(np.ones(50), slowdown=0.5, dropout=0.3, deadline=1.2).attendance(7, 3, 50, 10)
    assert np.array_equal(patient.steps, a.steps)  # another deadline, the same luck
    assert 0 < patient.participants < a.participants < 50


def test_slowdown_is_log_normal_and_dropout_uniform_over_the_steps():
    n = 20_000
    fast = Participation(np.full(n, 2.0), slowdown=0.5)
    late = [(~Participation(np.full(n, 2.0), deadline=2 * math.exp(0.5 * z), slowdown=0.5)
             .attendance(0, 0, n, 4).counted).mean() for z in (-1, 0, 1)]  # fmt: skip
    np.testing.assert_allclose(late, [0.8413, 0.5, 0.1587], atol=0.01)
    assert fast.attendance(0, 0, n, 4).counted.all()
    gone = Participation(dropout=0.25).attendance(0, 0, n, 4)
    assert gone.counted.mean() == pytest.approx(0.75, abs=0.01)
    assert np.array_equal(gone.sends_model, gone.counted)
    assert (gone.steps[gone.counted] == 4).all()
    np.testing.assert_allclose(
        np.bincount(gone.steps[~gone.counted], minlength=4) / (~gone.counted).sum(), 0.25, atol=0.02
    )
    assert math.isnan(gone.seconds)


def test_length_of_a_round_by_hand():
    times = np.array([1.0, 2.0, 4.0])
    assert Participation(times).attendance(0, 0, 3, 4).seconds == 4.0
    assert Participation(times, deadline=5).attendance(0, 0, 3, 4).seconds == 4.0  # nobody missed it
    assert Participation(times, deadline=4).attendance(0, 0, 3, 4).participants == 3  # in time to the second
    assert Participation(times, deadline=3).attendance(0, 0, 3, 4).seconds == 3.0
    for index in range(50):
        here = Participation(times, dropout=0.5).attendance(index, 1, 3, 4)
        assert here.seconds == max(times * here.steps / 4), f"round {index}"  # noticed when it happens
        with_deadline = Participation(times, dropout=0.5, deadline=10).attendance(index, 1, 3, 4)
        assert with_deadline.seconds == (4.0 if here.counted.all() else 10.0), f"round {index}"


def test_weights_are_shares_of_those_that_count():
    here = Participation([1, 2, 3], deadline=2).attendance(0, 0, 3, 1)
    np.testing.assert_allclose(here.weights(SHARES), [1 / 6, 5 / 6, 0])
    assert Participation([1, 2, 3]).attendance(0, 0, 3, 1).weights(SHARES).tolist() == SHARES.tolist()
    assert Participation([1, 2, 3], deadline=0.5).attendance(0, 0, 3, 1).weights(SHARES).tolist() == [0, 0, 0]


# --- checkpoints, history ---

TROUBLE = Participation([1.0, 2.0, 3.0], deadline=3.0, slowdown=0.5, dropout=0.3)


@pytest.mark.parametrize("framework", ["fedavg", "edgesplit"])
def test_resumed_equals_uninterrupted_bit_for_bit(framework, data, model, tmp_path):
    model, file = nn.Sequential(*model[:-1], nn.Dropout(0.2), model[-1]), tmp_path / "run.pt"
    whole = run(data, model, framework, rounds=7, participation=TROUBLE)
    run(data, model, framework, rounds=3, participation=TROUBLE, checkpoint=file)
    torch.rand(3)
    resumed = run(data, model, framework, rounds=7, participation=TROUBLE, checkpoint=file)
    assert resumed == whole
    assert_same_model(resumed, whole)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Participation([1.0, 2.0, 3.0], deadline=3.0, slowdown=0.5, dropout=0.2), r"dropout: expected 0\.2, got 0\.3"),
        (Participation([1.0, 2.0, 3.0], deadline=4.0, slowdown=0.5, dropout=0.3), r"deadline: expected 4\.0, got 3\.0"),
        (Participation([1.0, 2.5, 3.0], deadline=3.0, slowdown=0.5, dropout=0.3), r"times: expected 2\.5, got 2\.0"),
        (None, r"device_times: expected None, got \[1\.0, 2\.0, 3\.0\]"),
    ],
)
def test_a_checkpoint_with_another_participation_is_refused(other, message, data, model, tmp_path):
    file = tmp_path / "run.pt"
    run(data, model, rounds=1, participation=TROUBLE, checkpoint=file)
    with pytest.raises(CheckpointError, match=message):
        run(data, model, rounds=2, participation=other, checkpoint=file)


def test_a_checkpoint_without_participation_is_refused_with_it(data, model, tmp_path):
    file = tmp_path / "run.pt"
    run(data, model, rounds=1, checkpoint=file)
    with pytest.raises(CheckpointError, match=r"device_times: expected \[1\.0, 2\.0, 3\.0\], got None"):
        run(data, model, rounds=2, participation=TROUBLE, checkpoint=file)


def test_history_shows_participants_only_where_they_vary(data, model, tmp_path):
    history = run(data, model, participation=TROUBLE)
    assert list(history.to_frame())[-1] == "participants"
    assert history.to_frame()["participants"].tolist() == history.participants.tolist()
    assert "participants" not in run(data, model).to_frame()
    assert History.load(history.save(tmp_path / "history.json")) == history
    assert Participation.from_dict(TROUBLE.to_dict()) == TROUBLE
    old = {k: v for k, v in run(data, model).to_dict().items() if k != "participants"}
    assert History.from_dict(old).participants is None


# --- where the times come from ---


def test_times_are_the_plans_for_its_own_framework_else_its_round_time(data, model):
    plan = plan_of(model, "edgesplit", [1.0, 2.0, 5.0])
    short = Participation(deadline=3)
    assert run(data, model, "edgesplit", plan=plan, participation=short).simulated_time_s.tolist() == [3, 6, 9, 12]
    with pytest.raises(ScenarioError, match=r"device times for its deadline or slowdown, got none.*plan for fedavg"):
        run(data, model, plan=plan, participation=short)
    own = run(data, model, plan=plan, participation=Participation([1, 1, 2], deadline=3))  # given times go first
    assert own.simulated_time_s.tolist() == [2, 4, 6, 8]
    plain = run(data, model, plan=plan, participation=Participation(dropout=0.01))
    assert plain.simulated_time_s.tolist() == [5, 10, 15, 20]
    plan = plan_of(model, "edgesplit", [1.0, 2.0, 5.0], method="fedavg")  # the baseline's: all cuts at the output
    assert run(data, model, plan=plan, participation=short).simulated_time_s.tolist() == [3, 6, 9, 12]
    assert np.isnan(run(data, model, participation=Participation(dropout=0.5)).simulated_time_s).all()


# --- bad input ---


@pytest.mark.parametrize("framework", sorted(set(FRAMEWORKS) - {"fedavg", "edgesplit"}))
def test_frameworks_that_need_everybody_say_why(framework, data, model):
    why = {"centralised": "no devices", "sl": "hand one model on", "pipeline": "wait for one another"}
    message = f"participation: .* got {framework}: .*{why.get(framework, 'server steps on the samples of all')}.* Fix: "
    with pytest.raises(ScenarioError, match=message):
        run(data, model, framework, cut=3, participation=TROUBLE)


@pytest.mark.parametrize("framework", sorted(set(FRAMEWORKS) - {"fedavg", "edgesplit"}))
def test_a_round_with_missing_clients_is_refused_where_all_are_needed(framework, model):
    cut = {"centralised": None, "pipeline": [3]}.get(framework, 3)
    config = TrainingConfig(
        framework=framework, n_clients=3, batch_size=8, optimizer=momentum, cut=cut, example=(1, 8, 8)
    )
    with pytest.raises(ScenarioError, match=f"participation: expected none for this framework, got {framework}"):
        build_framework(model, config).round(lambda i, k: None, np.random.default_rng(0), Attendance.full(3, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Participation(deadline=0), r"Participation\.deadline: expected values above 0, got 0"),
        (lambda: Participation(deadline=float("nan")), r"Participation\.deadline: expected finite numbers"),
        (lambda: Participation(slowdown=-1), r"Participation\.slowdown: expected values of at least 0, got -1"),
        (lambda: Participation(slowdown=math.inf), r"Participation\.slowdown: expected finite numbers"),
        (lambda: Participation(dropout=1.5), r"Participation\.dropout: expected a value of at most 1, got 1\.5"),
        (lambda: Participation([1, 0]), r"Participation\.device_times: expected values above 0, got 0 at index \(1,\)"),
        (lambda: Participation(3.0), r"Participation\.device_times: expected shape \(any\), got shape \(\)"),
    ],
)
def test_bad_participation_says_what_was_expected(make, message):
    with pytest.raises(ScenarioError, match=message):
        make()


def test_participation_that_does_not_fit_the_run_is_refused(data, model):
    with pytest.raises(ScenarioError, match=r"participation: expected one device time per client, 3 in all, got 2"):
        run(data, model, participation=Participation([1, 2]))
    with pytest.raises(ScenarioError, match=r"participation: expected device times for its deadline or slowdown"):
        run(data, model, participation=Participation(slowdown=0.1))
    with pytest.raises(ScenarioError, match=r"participation: expected psl\.training\.Participation, got float"):
        run(data, model, participation=0.5)
