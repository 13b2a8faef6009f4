"""The real huggingface_hub against saaz, both on the fake hub: each uses the cache that the other filled, the caches are
the same file for file, and each reads what the other pushed.
    hub_oracle.py SAAZ FAKE_HUB MODEL_FOLDER       exit status 0 when all holds
"""
import json, os, pathlib, subprocess, sys, tempfile, time

saaz, fake_hub, model = sys.argv[1:]
work = pathlib.Path(tempfile.mkdtemp(prefix="saaz-hub-oracle-"))
token = "hf_CANARY0123456789abcdefghijklmnopq"


def start_hub():
    ready = work / "ready"
    hub = subprocess.Popen([fake_hub, model, ready], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not ready.exists() or not ready.read_text():
        time.sleep(0.02)
    return hub, ready.read_text()


hub, endpoint = start_hub()


def environment(home, **more):
    return {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(work / home), "HF_TOKEN": token, "no_proxy": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", **more}


def ours(home, *arguments):
    command = [saaz, "--json", "--quiet", *arguments]
    return json.loads(subprocess.run(command, env=environment(home), check=True, capture_output=True, text=True).stdout)


def theirs(home, code, **more):
    code = "import huggingface_hub as hub\n" + code
    run = subprocess.run([sys.executable, "-c", code], env=environment(home, **more), capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"huggingface_hub failed:\n{run.stderr[-2000:]}")
    return run.stdout.strip()


def layout(home):
    """Every name below the cache of models: a link's target, a listing's meaning, or a file's bytes."""
    root = work / home / "hub" / "models--test--tiny"
    out = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            out[name] = os.readlink(path)
        elif path.is_file():
            out[name] = json.loads(path.read_text()) if name.startswith("trees/") else path.read_bytes()
    return out


def holds(what, condition):
    print(("PASS  " if condition else "FAIL  ") + what)
    if not condition:
        sys.exit(f"hub_oracle: {what}: not so")


print("huggingface_hub", theirs("none", "print(hub.__version__)"))

mine = ours("a", "fetch", "test/tiny")
offline = theirs("a", "print(hub.snapshot_download('test/tiny'))", HF_HUB_OFFLINE="1")
holds("huggingface_hub, offline, finds what saaz fetched", offline == mine["snapshot"])
holds("it finds a single file of it", theirs("a", "print(hub.try_to_load_from_cache('test/tiny', 'config.json'))")
      == mine["snapshot"] + "/config.json")
holds("it scans the cache without a warning",
      theirs("a", "c = hub.scan_cache_dir(); print(len(c.warnings), [r.repo_id for r in c.repos])") == "0 ['test/tiny']")

snapshot = theirs("b", "print(hub.snapshot_download('test/tiny'))")
mine = ours("b", "fetch", "test/tiny")
holds("saaz fetches nothing that huggingface_hub fetched", mine["n_fetched"] == 0 and mine["snapshot"] == snapshot)
a, b = layout("a"), layout("b")
holds(f"the two caches are the same, {len(a)} names", a == b)

part = theirs("c", "print(hub.snapshot_download('test/tiny', allow_patterns='*.json'))")
mine = ours("c", "fetch", "test/tiny")
holds("saaz completes what huggingface_hub began", 0 < mine["n_fetched"] < mine["n_files"] and mine["snapshot"] == part)
tagged = ours("d", "fetch", "test/tiny@v1")
holds("a tag is the same commit to both",
      theirs("d", "print(hub.snapshot_download('test/tiny', revision='v1'))", HF_HUB_OFFLINE="1") == tagged["snapshot"])
data = ours("d", "fetch", "test/chats", "--dataset")
holds("and a dataset the same folder", theirs("d", "print(hub.snapshot_download('test/chats', repo_type='dataset'))",
                                              HF_HUB_OFFLINE="1") == data["snapshot"])
subprocess.run([saaz, "bundle", "export", "test/tiny", "-o", work / "tiny.tar"], env=environment("a"), check=True)
(work / "e" / "hub").mkdir(parents=True)
subprocess.run(["tar", "-xf", work / "tiny.tar", "-C", work / "e" / "hub"], check=True)
unpacked = theirs("e", "print(hub.snapshot_download('test/tiny'))", HF_HUB_OFFLINE="1")
holds("huggingface_hub, offline, finds what plain tar unpacked from a bundle", (pathlib.Path(unpacked) / "config.json").exists())

ours("f", "push", model, "me/ours", "--private", "--send-token")
theirs("f", f"hub.create_repo('me/theirs', private=True); hub.upload_folder(repo_id='me/theirs', folder_path={model!r})")
theirs_read = pathlib.Path(theirs("f", "print(hub.snapshot_download('me/ours'))"))
ours_read = pathlib.Path(ours("f", "fetch", "me/theirs", "--send-token")["snapshot"])
for path in pathlib.Path(model).iterdir():
    same = (theirs_read / path.name).read_bytes() == (ours_read / path.name).read_bytes() == path.read_bytes()
    holds(f"each reads what the other pushed: {path.name}", same)
hub.communicate("")
