"""The teachers: relevance learns the policy's grades, engagement learns what members do; each stores its logits once."""
