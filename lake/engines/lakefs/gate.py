"""The release gate that runs inside a lakeFS server, as a pre-merge action on `main`.

It is the second lock: lakeFS reads actions from the *source* commit, so a branch without the file, or with another
one, merges unchecked. The first lock is the client (`releases.gate`), which refuses such a source before it asks.

The merge must carry the metadata

- `release`: the release's name,
- `qc`: commit Q, the tree that was judged,
- `expect_dest`: the head of main that Q was judged against,

and the source must hold `_qc/<Q>.json` with `commit` = Q, `dest` = that head and `status` `pass` or `waived`. Between Q
and the source only `_qc/` and `_releases/<release>/` may differ, and main may hold nothing that the source lacks: so
main becomes the tree that was judged. In a pre-merge action the first parent of the commit to be is the head that the
server is about to replace, under its own compare-and-set; comparing `expect_dest` with it closes the race of two
publishers.
"""

GATE_KEY = "_lakefs_actions/release_gate.yaml"

# `diff_refs` is three-dot: "what did the right side change since both were one". So equality of two lines takes both
# directions. The server's Lua has no string.match; its regexp module has Go's syntax.
_GATE = r"""# Installed by `emlake init`; the rule is told in lake/engines/lakefs/gate.py.
name: release gate
description: main only moves to a tree that was judged
on:
  pre-merge:
    branches:
      - main
hooks:
  - id: judged
    type: lua
    properties:
      script: |
        local hook = require("hook")
        local json = require("encoding/json")
        local lakefs = require("lakefs")
        local regexp = require("regexp")

        local repository = action.repository_id
        local source = action.source_ref
        local head = action.commit.parents[1]
        local request = action.commit.metadata or {}

        local function demand(holds, reason)
          if not holds then
            hook.fail(reason)
          end
        end

        local function check_request()
          demand(request.release and request.qc and request.expect_dest,
            "this merge is not a release: use `emlake release publish`")
          demand(regexp.match("^[A-Za-z0-9][A-Za-z0-9_-]*$", request.release),
            "the release name is not valid: " .. request.release)
          demand(regexp.match("^[0-9a-f]{64}$", request.qc),
            "qc is not a full commit id: " .. request.qc)
          demand(request.expect_dest == head,
            "main has moved: it is at " .. tostring(head) .. ", not at " .. request.expect_dest)
        end

        local function check_verdict()
          local code, text = lakefs.get_object(repository, source, "_qc/" .. request.qc .. ".json")
          demand(code == 200, "there is no QC verdict on " .. request.qc .. " (" .. tostring(code) .. ")")
          local readable, verdict = pcall(json.unmarshal, text)
          demand(readable and type(verdict) == "table", "the QC verdict is not a JSON object")
          demand(verdict.status == "pass" or verdict.status == "waived",
            "the QC verdict is " .. tostring(verdict.status))
          demand(verdict.commit == request.qc, "the QC verdict is on commit " .. tostring(verdict.commit))
          demand(verdict.dest == head, "the QC verdict was reached against " .. tostring(verdict.dest))
        end

        local function within(path, folders)
          for _, folder in ipairs(folders) do
            if string.sub(path, 1, #folder) == folder then
              return true
            end
          end
          return false
        end

        local function check_changes(left, right, folders, reason)
          local after, more = "", true
          while more do
            local code, page = lakefs.diff_refs(repository, left, right, after)
            demand(code == 200, reason .. "diff failed (" .. tostring(code) .. ")")
            for _, change in pairs(page.results) do
              if type(change) == "table" then
                demand(within(change.path, folders), reason .. change.path)
              end
            end
            after, more = page.pagination.next_offset, page.pagination.has_more
          end
        end

        check_request()
        check_verdict()
        local allowed = {"_qc/", "_releases/" .. request.release .. "/"}
        check_changes(request.qc, source, allowed, "changed after QC: ")
        check_changes(source, request.qc, {}, "QC judged another line of work, with ")
        check_changes(source, head, {}, "main holds what the candidate lacks: ")
"""


def gate_yaml() -> bytes:
    """Give the action file, as it must lie at `GATE_KEY` on main and on every candidate."""
    return _GATE.encode()
