// Bundles for machines without a network: there and back, and every damage found.
#include "hub/bundle.h"
#include "hub/hub_testing.h"
#include "hub/tar.h"

namespace saaz {
namespace {

TEST_F(Hub, BundlesCarryARepository) {
  fetch();
  const fs::path tar = folder_ / "b.tar", home = folder_ / "home";
  export_bundle(settings().cache, kRepo, tar);
  const BundleResult result = import_bundle(home, tar);
  expect_snapshot(result.snapshot, files_);
  EXPECT_EQ(*find_snapshot(home, kRepo), result.snapshot);
  EXPECT_EQ(fs::read_symlink(result.snapshot / "sub/notes.md"),
            fs::read_symlink(folder_ / "cache/models--org--name/snapshots" / commit_ / "sub/notes.md"));
  // Any tar can unpack it into a cache.
  const std::string unpack = fmt::format("mkdir {0} && tar -xf {1} -C {0}", (folder_ / "plain").string(), tar.string());
  ASSERT_EQ(std::system(unpack.c_str()), 0);
  expect_snapshot(*find_snapshot(folder_ / "plain", kRepo), files_);
  // The same content gives the same bundle.
  export_bundle(home, kRepo, folder_ / "c.tar");
  EXPECT_EQ(sha256_of_file(tar), sha256_of_file(folder_ / "c.tar"));
}

TEST_F(Hub, ADamagedCacheIsNotExported) {
  fetch();
  std::string damaged = weights_;
  damaged[5] ^= 1;
  write_file_atomically(blob(weights_), damaged);
  expect_error(8, "wrong checksum", [&] { export_bundle(settings().cache, kRepo, folder_ / "b.tar"); });
  EXPECT_FALSE(fs::exists(folder_ / "b.tar"));
}

TEST_F(Hub, EveryDamageOfABundleIsFound) {
  fetch_only("config.json");
  export_bundle(settings().cache, kRepo, folder_ / "b.tar");
  const std::string whole = read_file(folder_ / "b.tar");
  size_t n_refused = 0;
  for (size_t i = 0; i < whole.size() + whole.size() / 100; ++i) {
    const bool is_flip = i < whole.size();
    std::string damaged = is_flip ? whole : whole.substr(0, (i - whole.size()) * 100);
    if (is_flip) damaged[i] ^= 1;
    write_file_atomically(folder_ / "d.tar", damaged);
    fs::remove_all(folder_ / "home");
    const auto [code, message] = thrown_by([&] { import_bundle(folder_ / "home", folder_ / "d.tar"); });
    n_refused += code != 0;
    EXPECT_TRUE(code == 0 || code == 3 || code == 8) << code << ' ' << message;
    const auto snapshot = find_snapshot(folder_ / "home", kRepo);
    if (code == 0)  // the damage was in padding or in what the manifest replaces
      expect_snapshot(snapshot.value(), {{"config.json", kSmall}});
    else
      EXPECT_FALSE(snapshot) << "byte " << i;
  }
  EXPECT_GT(n_refused, whole.size() / 4);
}

TEST_F(Hub, BundlesThatReachOutAreRefused) {
  const std::string id = git_blob_id(std::as_bytes(std::span(kSmall))), sum = sha256_hex(kSmall);
  const auto write = [&](const std::string& path, const std::string& extra, bool link_extra) {
    const std::string text = fmt::format(
        R"({{"format": 1, "kind": "model", "repo": "org/name", "revision": "main", "commit": "{0:040}", "files": [)"
        R"({{"path": "{1}", "size": {2}, "blob": "{3}", "sha256": "{4}"}}]}})",
        0, path, kSmall.size(), id, sum);
    const std::string manifest_sum = sha256_hex(text) + "  saaz-bundle.json\n", folder = "models--org--name/";
    TarWriter tar(folder_ / "evil.tar");
    tar.add_file(folder + "saaz-bundle.json", std::as_bytes(std::span(text)));
    tar.add_file(folder + "saaz-bundle.json.sha256", std::as_bytes(std::span(manifest_sum)));
    tar.add_file(folder + "blobs/" + id, std::as_bytes(std::span(kSmall)));
    if (link_extra)
      tar.add_link(extra, "/etc/passwd");
    else if (!extra.empty())
      tar.add_file(extra, std::as_bytes(std::span(kSmall)));
    tar.commit();
  };
  const auto import = [&] { import_bundle(folder_ / "home", folder_ / "evil.tar"); };
  for (const char* path : {"../../../evil", "/evil", "a/../../b"}) {
    write(path, "", false);
    expect_error(3, "is refused", import);
  }
  for (const char* name :
       {"../evil", "/tmp/evil", "models--org--name/../../evil", "models--org--name/blobs/evil", "evil"})
    for (const bool is_link : {false, true}) {
      write("config.json", name, is_link);
      expect_error(3, "is not in the manifest: refused", import);
    }
  EXPECT_FALSE(fs::exists(folder_ / "evil"));
  EXPECT_FALSE(find_snapshot(folder_ / "home", kRepo));
  write("config.json", "", false);
  import();
  EXPECT_EQ(read_file(*find_snapshot(folder_ / "home", kRepo) / "config.json"), kSmall);
}

}  // namespace
}  // namespace saaz
